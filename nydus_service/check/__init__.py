"""Whether a nydus image is sound, and the very image that it was made of."""
