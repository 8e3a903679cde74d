"""Peers with WS-Security of their own:

soap_security_peers.py zeep URL USER PASSWORD     calls the depot at URL, and prints what came of it as JSON
soap_security_peers.py suds URL USER PASSWORD     the same
soap_security_peers.py token USER PASSWORD [AGE]  prints a UsernameToken with a digest, made AGE seconds ago
soap_security_peers.py service USER PASSWORD      serves on a free port, which it prints, and checks digests
"""

import base64
import datetime
import hashlib
import http.server
import json
import os
import sys
import xml.etree.ElementTree as ET

WSSE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd"
WSU = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd"
PROFILE = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0"
BASE64 = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary"


def digest(nonce, created, password):
    return base64.b64encode(hashlib.sha1(nonce + created.encode() + password.encode()).digest()).decode()


def with_zeep(url, user, password):
    import zeep
    import zeep.exceptions
    from zeep.wsa import WsAddressingPlugin
    from zeep.wsse.username import UsernameToken
    from zeep.wsse.utils import WSU as wsu

    def timestamp(ago):
        """Of so many minutes ago, to be used within five minutes."""
        made = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=ago)
        token = wsu.Timestamp()
        token.append(wsu.Created(made.isoformat()))
        token.append(wsu.Expires((made + datetime.timedelta(minutes=5)).isoformat()))
        return token

    def call(port, wsse, plugins=()):
        client = zeep.Client(url, wsse=wsse, plugins=list(plugins))
        try:
            return client.bind("DepotService", port).Level(sku="AB-123")
        except zeep.exceptions.Fault as fault:
            codes = [fault.code] + [code.localname for code in fault.subcodes or []]
            return {"codes": codes, "message": fault.message}

    out = {}
    for port in ("DepotPort11", "DepotPort12"):
        out[port] = {
            "text": call(port, UsernameToken(user, password)),
            "digest": call(port, UsernameToken(user, password, use_digest=True)),
            "zulu": call(port, UsernameToken(user, password, use_digest=True, zulu_timestamp=True)),
            "addressed": call(port, UsernameToken(user, password, use_digest=True), [WsAddressingPlugin()]),
            "timestamp": call(port, UsernameToken(user, password, timestamp_token=timestamp(0))),
            "expired": call(port, UsernameToken(user, password, timestamp_token=timestamp(6))),
            "wrong": call(port, UsernameToken(user, password + "x", use_digest=True)),
            "nobody": call(port, UsernameToken(user + "x", password)),
            "none": call(port, None),
        }
    return json.dumps(out)


def with_suds(url, user, password):
    import suds
    import suds.client
    import suds.wsse

    def call(password, with_nonce):
        client = suds.client.Client(url, cache=None, port="DepotPort11")
        token = suds.wsse.UsernameToken(user, password)
        security = suds.wsse.Security()
        if with_nonce:
            token.setnonce()
            token.setcreated()
            security.tokens.append(suds.wsse.Timestamp())
        security.tokens.append(token)
        client.set_options(wsse=security)
        try:
            return int(client.service.Level("AB-123"))
        except suds.WebFault as fault:
            return fault.fault.faultcode

    return json.dumps(
        {"text": call(password, False), "nonce": call(password, True), "wrong": call(password + "x", True)}
    )


def token(user, password, age="0"):
    made = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=int(age))
    created = made.strftime("%Y-%m-%dT%H:%M:%SZ")
    nonce = os.urandom(16)
    return (
        f'<wsse:Security xmlns:wsse="{WSSE}" xmlns:wsu="{WSU}"><wsse:UsernameToken>'
        f"<wsse:Username>{user}</wsse:Username>"
        f'<wsse:Password Type="{PROFILE}#PasswordDigest">{digest(nonce, created, password)}</wsse:Password>'
        f'<wsse:Nonce EncodingType="{BASE64}">{base64.b64encode(nonce).decode()}</wsse:Nonce>'
        f"<wsu:Created>{created}</wsu:Created></wsse:UsernameToken></wsse:Security>"
    )


def service(user, password):
    used = set()

    def refusal(envelope):
        security = envelope.find(f".//{{{WSSE}}}Security")
        if security is None:
            return "no Security"
        if security.get("{http://schemas.xmlsoap.org/soap/envelope/}mustUnderstand") != "1":
            return "not mandatory"
        now = datetime.datetime.now(datetime.timezone.utc)
        times = security.find(f"{{{WSU}}}Timestamp")
        created, expires = (
            datetime.datetime.fromisoformat(times.findtext(f"{{{WSU}}}{name}").replace("Z", "+00:00"))
            for name in ("Created", "Expires")
        )
        if not created <= now < expires or expires - created != datetime.timedelta(minutes=2):
            return "not the time"
        token = security.find(f"{{{WSSE}}}UsernameToken")
        if token.findtext(f"{{{WSSE}}}Username") != user:
            return "another user"
        given = token.find(f"{{{WSSE}}}Password")
        if given.get("Type") != PROFILE + "#PasswordDigest":
            return "not a digest"
        nonce = base64.b64decode(token.findtext(f"{{{WSSE}}}Nonce"))
        if nonce in used:
            return "used before"
        used.add(nonce)
        if given.text != digest(nonce, token.findtext(f"{{{WSU}}}Created"), password):
            return "another password"
        return None

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            why = refusal(ET.fromstring(body))
            inner = "<ok/>" if why is None else (
                f"<e:Fault><faultcode>e:Client</faultcode><faultstring>{why}</faultstring></e:Fault>"
            )
            answer = (
                '<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/">'
                f"<e:Body>{inner}</e:Body></e:Envelope>"
            ).encode()
            self.send_response(200 if why is None else 500)
            self.send_header("Content-Type", "text/xml; charset=utf-8")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


kind, *rest = sys.argv[1:]
if kind == "service":
    service(*rest)
else:
    print({"zeep": with_zeep, "suds": with_suds, "token": token}[kind](*rest))
