"""Where the file of an annotated video lies.

Requirements: those of video.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from examples.vttwins.video import SUFFIXES, find_video


def locate(root: str | Path, video_id: str, folders: Iterable[str] = ()) -> Path:
    """The file of a video, in one of the folders under ``root`` or in ``root`` itself.

    An id may end in a suffix, and the file in another one: data sets are often re-encoded.

    Returns:
        the path; one that does not exist if there is no such file.
    """
    stem = video_id
    for suffix in SUFFIXES:
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    places = [Path(root, folder) for folder in folders if folder] + [Path(root)]
    for place in places:
        exact = place / video_id
        for path in (exact, find_video(place, video_id), find_video(place, stem)):
            if path.is_file():
                return path
    return places[0] / video_id
