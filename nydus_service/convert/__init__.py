"""Conversion of one image, over any stores, builder and verifier: `image.convert_image`."""
