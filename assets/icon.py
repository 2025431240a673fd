"""Draws the application's icon: a round brilliant seen from the side. Usage: python icon.py (needs Pillow)."""

from pathlib import Path

from PIL import Image, ImageDraw

SIZE, SCALE = 256, 4


def main() -> None:
    side = SIZE * SCALE
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    unit = side / 256

    def at(*points):
        return [(x * unit, y * unit) for x, y in points]

    draw.rounded_rectangle([0, 0, side - 1, side - 1], radius=56 * unit, fill="#14161B")
    # Table, girdle and culet of the stone.
    t0, t1, t2, t3 = (82, 66), (112, 66), (144, 66), (174, 66)
    g0, g1, g2, g3, g4 = (38, 116), (84, 116), (128, 116), (172, 116), (218, 116)
    top = (128, 66)
    tip = (128, 210)
    facets = [
        ((t0, g0, g1), "#2B9389"), ((t0, g1, top), "#58CFC1"), ((top, g1, g3), "#A5ECE3"),
        ((top, g3, t3), "#43BFB1"), ((t3, g3, g4), "#1F7A72"),
        ((g0, g1, tip), "#1F7A72"), ((g1, g2, tip), "#43BFB1"), ((g2, g3, tip), "#2FA497"),
        ((g3, g4, tip), "#175F59"),
    ]
    for corners, colour in facets:
        draw.polygon(at(*corners), fill=colour)
    edge = "#14161B"
    for line in [(t0, g1), (g1, top), (top, g3), (g3, t3), (g0, g4), (g1, tip), (g3, tip)]:
        draw.line(at(*line), fill=edge, width=int(2.4 * unit))
    image.resize((SIZE, SIZE), Image.LANCZOS).save(Path(__file__).parent / "icon.png", optimize=True)


main()
