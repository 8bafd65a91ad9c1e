"""One image from walk to name, over whatever stores, builder and verifier: `image.convert_image`."""
