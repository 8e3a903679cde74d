"""A real SMTP server (aiosmtpd) that keeps each mail as a file and knows nobody whose
name begins with "refused", puts off whoever is called "later…", and at first whoever is called
"grey…": smtp_sink.py PORT FOLDER [--tls whole|start CERT KEY]
[--login USER PASSWORD]. The first mail to somebody whose name begins with "lost" is kept,
and the connection is cut before that is said."""

import argparse
import asyncio
import itertools
import os
import ssl

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class Keep:
    def __init__(self, folder):
        self.folder = folder
        self.numbers = itertools.count()
        self.lost = False
        self.known = set()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("refused"):
            return "550 no such user"
        if address.startswith("later"):
            return "451 not now"
        if address.startswith("grey") and address not in self.known:
            self.known.add(address)
            return "450 come again"
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        name = os.path.join(self.folder, "%06d.eml" % next(self.numbers))
        head = "X-Envelope-To: %s\r\n" % ",".join(envelope.rcpt_tos)
        if server.transport.get_extra_info("cipher") is not None:
            head += "X-Encrypted: yes\r\n"
        with open(name + ".new", "wb") as out:
            out.write(head.encode() + envelope.original_content)
        os.rename(name + ".new", name)
        if envelope.rcpt_tos[0].startswith("lost") and not self.lost:
            self.lost = True
            server.transport.abort()
        return "250 kept"


parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("folder")
parser.add_argument("--tls", nargs=3, metavar=("KIND", "CERT", "KEY"))
parser.add_argument("--login", nargs=2, metavar=("USER", "PASSWORD"))
told = parser.parse_args()

more = {}
if told.tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(told.tls[1], told.tls[2])
    if told.tls[0] == "whole":
        more["ssl_context"] = context
    else:
        more.update(tls_context=context, require_starttls=True)
if told.login:
    login = tuple(word.encode() for word in told.login)

    def authenticate(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login, data.password) == login, handled=False)

    more.update(
        authenticator=authenticate,
        auth_required=True,
        # aiosmtpd does not count encryption from the first byte as such.
        auth_require_tls=bool(told.tls) and told.tls[0] == "start",
    )
controller = Controller(Keep(told.folder), hostname="127.0.0.1", port=told.port, **more)
controller.start()
asyncio.new_event_loop().run_forever()
