"""Readers: one module per file format.  Each provides a ``Source`` (``data.source``).

coco           a COCO-format or LVIS JSON file with a folder of photos
images         a folder of photos, with SA-1B or labelme JSON files or mask PNGs, or without annotations
tars           SA-1B's tar files, read without unpacking
prepared       ArrayRecord shards written by ``edgesam_jax.prepare`` or TFDS
id_list        a subset of any of these, selected by a list of photo ids
unlabelled     generated prompts for photos without annotations

``records`` decodes a photo and its annotations for all of them; ``annotations`` and ``segmentations`` say which
annotations can be used, and why the others can't.  ``labelme`` and ``mask_files`` parse labelme's JSON and mask
pictures for ``images``; ``tfds_layouts``, the record layouts for ``prepared``; ``file_names`` finds files by any
spelling.
"""
