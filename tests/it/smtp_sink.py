"""A real SMTP server (aiosmtpd) that keeps each mail as a file and knows nobody whose
name begins with "refused": smtp_sink.py PORT FOLDER."""

import asyncio
import itertools
import os
import sys

from aiosmtpd.controller import Controller


class Keep:
    def __init__(self, folder):
        self.folder = folder
        self.numbers = itertools.count()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        name = os.path.join(self.folder, "%06d.eml" % next(self.numbers))
        head = "X-Envelope-To: %s\r\n" % ",".join(envelope.rcpt_tos)
        with open(name + ".new", "wb") as out:
            out.write(head.encode() + envelope.original_content)
        os.rename(name + ".new", name)
        return "250 kept"


port, folder = int(sys.argv[1]), sys.argv[2]
controller = Controller(Keep(folder), hostname="127.0.0.1", port=port)
controller.start()
asyncio.new_event_loop().run_forever()
