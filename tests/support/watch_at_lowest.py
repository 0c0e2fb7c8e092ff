"""Answers about a video, a line of JSON each: `python watch_at_lowest.py BUNDLE PLAN PHOTO QUESTION VIDEO`.

It writes the video with OpenCV, three frames of the photo, and has `vtexport watch` read it.
"""

from __future__ import annotations

import sys

import cv2

from vtexport.cli.main import main

if __name__ == "__main__":
    bundle, plan, photo, question, video = sys.argv[1:]
    image = cv2.resize(cv2.imread(photo), (320, 240))
    writer = cv2.VideoWriter(video, cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (320, 240))
    for _ in range(3):
        writer.write(image)
    writer.release()
    arguments = ["--source", video, "--prompt", question, "--plan", plan, "--offline", "--max-new-tokens", "8"]
    sys.exit(main(["watch", bundle, *arguments]))
