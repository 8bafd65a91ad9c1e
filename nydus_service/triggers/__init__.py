"""What makes jobs without a request to the API: labels of images in containerd, and rules for new images."""
