"""Canonical XML (W3C) of each file that is named, as a JSON list: what two documents share that say the same.

    canonical.py exclusive|inclusive FILE...

Comments are left out. lxml (libxml2) reads and writes, so that the bus is not its own judge.
"""

import json
import sys

from lxml import etree

parser = etree.XMLParser(resolve_entities=False, no_network=True)
exclusive = sys.argv[1] == "exclusive"
documents = []
for name in sys.argv[2:]:
    tree = etree.parse(name, parser)
    text = etree.tostring(tree, method="c14n", exclusive=exclusive, with_comments=False)
    documents.append(text.decode())
json.dump(documents, sys.stdout)
