"""Files: lines as a source, also of packed files and of ones that grow; and as a sink."""

from velo.connect._file.endpoint import File, file, of_url

__all__ = ["File", "file", "of_url"]
