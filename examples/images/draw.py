#!/usr/bin/env python3
"""Draws the two pictures that the examples and their tests read: sign.png and clock.png."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent


def sign() -> Image.Image:
    picture = Image.new("RGB", (640, 400), (222, 230, 235))
    canvas = ImageDraw.Draw(picture)
    canvas.rounded_rectangle((40, 30, 600, 290), 24, fill=(18, 74, 120), outline="white", width=6)
    canvas.rectangle((300, 290, 340, 400), fill=(110, 110, 115))
    for words, x, y, size, colour in (
        ("NEREID", 170, 95, 60, "white"),
        ("HARBOUR", 470, 95, 48, (255, 214, 90)),
        ("Open daily", 190, 175, 38, "white"),
        ("9:30", 470, 175, 44, "white"),
        ("TICKETS", 180, 245, 42, (255, 214, 90)),
        ("42", 470, 245, 48, "white"),
    ):
        canvas.text((x, y), words, fill=colour, font=ImageFont.load_default(size), anchor="mm")
    return picture


def clock() -> Image.Image:
    picture = Image.new("RGB", (320, 320), (196, 178, 150))
    canvas = ImageDraw.Draw(picture)
    centre = 160
    canvas.ellipse((28, 34, 300, 306), fill=(150, 134, 110))
    canvas.ellipse((20, 20, 300, 300), fill=(60, 40, 28))
    canvas.ellipse((36, 36, 284, 284), fill=(250, 248, 240))
    for hour in range(1, 13):
        angle = math.radians(30 * hour)
        place = (centre + 98 * math.sin(angle), centre - 98 * math.cos(angle))
        canvas.text(place, str(hour), fill="black", font=ImageFont.load_default(30), anchor="mm")
    for minute, length, width in ((50.8, 62, 10), (10, 92, 6)):
        angle = math.radians(6 * minute)
        tip = (centre + length * math.sin(angle), centre - length * math.cos(angle))
        canvas.line((centre, centre, *tip), fill="black", width=width)
    canvas.ellipse((152, 152, 168, 168), fill="black")
    return picture


if __name__ == "__main__":
    sign().save(HERE / "sign.png", optimize=True)
    clock().save(HERE / "clock.png", optimize=True)
