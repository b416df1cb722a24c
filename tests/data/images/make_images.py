"""Writes the JPEG files of tests/input/image_sets.cpp: 64 x 64, left half one colour, right half another."""
import os

from PIL import Image

os.chdir(os.path.dirname(os.path.abspath(__file__)))
halves = Image.new("RGB", (64, 64), (250, 10, 20))
halves.paste((30, 40, 240), (32, 0, 64, 64))
halves.save("halves.JPEG", quality=95, subsampling=0)
Image.new("L", (64, 64), 100).save("grey.JPEG", quality=95)
Image.new("RGB", (32, 64), (1, 2, 3)).save("narrow.JPEG")
Image.new("CMYK", (64, 64), (1, 2, 3, 4)).save("cmyk.JPEG")
