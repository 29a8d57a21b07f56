"""The procedural data set: generated scenes with exact masks, which need no download.

scene       draws one scene and annotates it
shapes      random outlines and their rasterisation
textures    noise, gradients, stripes, dots and crops of photographs
source      the scenes as a ``Source``
"""
