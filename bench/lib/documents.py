"""The documents that benchmarks send: an order, as itself or in a SOAP envelope, of an exact size."""

HEAD = """<order xmlns="urn:bench:order" no="4711">
  <customer>Acme &amp; Sons</customer>
  <country>DE</country>
  <priority>high</priority>
"""
TAIL = "  <total>11900</total>\n</order>"
LINE = """  <line no="{0}">
    <sku>A-{0:05}</sku>
    <quantity>{1}</quantity>
    <text>Hexagon bolt, zinc plated, M8 by {2} mm, in boxes of one hundred</text>
  </line>
"""
SOAP = ('<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>\n', "\n</s:Body></s:Envelope>")


def order(size, soap=False):
    """So many bytes: lines until there is no room for another, and a note that fills it up."""
    before, after = SOAP if soap else ("", "")
    before, after = before + HEAD, TAIL + after
    note = ("  <note>", "</note>\n")
    room = size - len(before) - len(after) - len(note[0]) - len(note[1])
    lines, number = [], 1
    while True:
        line = LINE.format(number, number % 9 + 1, 20 + number % 60)
        if len(line) > room:
            break
        lines.append(line)
        room -= len(line)
        number += 1
    text = before + "".join(lines) + note[0] + "x" * room + note[1] + after
    assert len(text) == size
    return text
