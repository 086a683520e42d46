"""Where the file of an annotated video lies.

Requirements: those of video.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from examples.vttwins.video import find_video


def locate(root: str | Path, video_id: str, folders: Iterable[str] = ()) -> Path:
    """The file of a video, in one of the folders under ``root`` or in ``root`` itself.

    An id may end in a suffix, and the file in another one: data sets are often re-encoded.

    Returns:
        the path; one that does not exist if there is no such file.
    """
    places = [Path(root, folder) for folder in folders if folder] + [Path(root)]
    paths = [find_video(place, video_id) for place in places]
    return next((path for path in paths if os.path.isfile(path)), paths[0])
