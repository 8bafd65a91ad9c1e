"""Triggers: jobs from labels of images in containerd, and from rules for new images."""
