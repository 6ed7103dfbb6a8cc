"""Procedural images: the bundled domains, textures."""

#: The bundled domains, which show the same photographs, and the command that makes each.
BUNDLED = {
    "surface_defects": "tessera demo --data-only",
    "surface_masks": "tessera demo --task segmentation --data-only",
    "surface_boxes": "tessera demo --task detection --data-only",
}
