"""Generated scenes: shapes, textures, and the scenes made of them."""
