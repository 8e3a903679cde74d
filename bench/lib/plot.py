"""Line charts as SVG, several in one file, both axes logarithmic; no dependencies."""
import math
from html import escape

WIDTH, HEIGHT, LEFT, TOP, INNER = 420, 300, 60, 40, 210


def decades(values):
    """Powers of ten that enclose the values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def short(exponent):
    value = 10.0**exponent
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def chart(title, unit, points, left):
    """One chart as SVG elements, shifted to the right."""
    (x_low, x_high), (y_low, y_high) = decades([x for x, _ in points]), decades([y for _, y in points])
    width = WIDTH - LEFT - 20
    at_x = lambda x: left + LEFT + (math.log10(x) - x_low) / (x_high - x_low) * width
    at_y = lambda y: TOP + INNER - (math.log10(y) - y_low) / (y_high - y_low) * INNER
    out = [f'<text x="{left + LEFT}" y="20" font-weight="bold">{escape(title)}</text>',
           f'<text x="{left + LEFT}" y="34" fill="#555">{escape(unit)}</text>']
    for exponent in range(x_low, x_high + 1):
        x = at_x(10.0**exponent)
        out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + INNER}" stroke="#ddd"/>'
                   f'<text x="{x:.1f}" y="{TOP + INNER + 16}" text-anchor="middle">{short(exponent)}</text>')
    for exponent in range(y_low, y_high + 1):
        y = at_y(10.0**exponent)
        out.append(f'<line x1="{left + LEFT}" y1="{y:.1f}" x2="{left + LEFT + width}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{left + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(exponent)}</text>')
    line = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
    out.append(f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/>')
    out += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="#06c"><title>{x:,}: {y:.1f}</title></circle>' for x, y in points]
    return "\n".join(out)


def line_chart(charts, unit, note):
    """An SVG document: `charts` are (title, points), side by side."""
    parts = [chart(title, unit, points, at * WIDTH) for at, (title, points) in enumerate(charts)]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(charts)}" height="{HEIGHT}" font-family="sans-serif" font-size="11">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts)
            + f'\n<text x="{LEFT}" y="{HEIGHT - 10}" fill="#555">{escape(note)}</text>\n</svg>\n')
