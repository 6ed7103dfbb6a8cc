"""Which files are images by their name, and which are left over from others. Imports nothing."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
JUNK = ("thumbs.db", "desktop.ini", "__macosx")


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, or was left by a system's file browser."""
    return name.startswith(".") or name.lower() in JUNK
