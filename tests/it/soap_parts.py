"""Peers that speak SOAP with attachments, built and read by libraries of their own:

soap_parts.py client URL    packages built with Python's email package; the answers as JSON
soap_parts.py zeep URL      a call with zeep, whose answer has attachments
soap_parts.py form URL      a form with files, as requests writes it
soap_parts.py service       a service that answers with MTOM, on a free port, which it prints
soap_parts.py spyne         the same made with spyne
"""

import base64
import email
import email.policy
import hashlib
import http.client
import json
import sys
import urllib.parse
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

SOAP_11 = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP_12 = "http://www.w3.org/2003/05/soap-envelope"
XOP = "http://www.w3.org/2004/08/xop/include"
PAGE = bytes(range(256)) * 3 + b"\r\n--x"


def envelope(namespace, content):
    return (
        f'<e:Envelope xmlns:e="{namespace}" xmlns:x="{XOP}"><e:Body>'
        f'<s:Store xmlns:s="urn:s">{content}</s:Store></e:Body></e:Envelope>'
    )


def package(root_type, root, attachments, **parameters):
    """Headers and octets, as the email package writes them: in base64 and quoted-printable."""
    whole = MIMEMultipart("related", **parameters)
    first = MIMEText(root, "xml", "utf-8")
    first.replace_header("Content-Type", root_type)
    first["Content-ID"] = "<root@python>"
    whole.attach(first)
    for content_id, name, octets in attachments:
        part = MIMEApplication(octets)
        part["Content-ID"] = f"<{content_id}>"
        part.add_header("Content-Disposition", "attachment", filename=("utf-8", "", name))
        whole.attach(part)
    octets = whole.as_bytes(policy=email.policy.HTTP)
    head, _, body = octets.partition(b"\r\n\r\n")
    content_type = email.message_from_bytes(head)["Content-Type"].replace("\r\n", "")
    return content_type, body


def read(content_type, body):
    """The parts of a body, as the email package reads them."""
    message = email.message_from_bytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body, policy=email.policy.HTTP
    )
    parts = list(message.iter_parts()) if message.is_multipart() else [message]
    return message, [
        {
            "type": part["Content-Type"],
            "id": part["Content-ID"],
            "name": part.get_filename(),
            "defects": [str(defect) for defect in part.defects],
            "octets": base64.b64encode(part.get_payload(decode=True)).decode(),
        }
        for part in parts
    ]


def client(url):
    attachments = [("page@python", "Seite ä.tif", PAGE)]
    include = '<s:page><x:Include href="cid:page@python"/></s:page>'
    calls = {}
    for name, namespace, info in (
        ("mtom11", SOAP_11, "text/xml"),
        ("mtom12", SOAP_12, "application/soap+xml"),
    ):
        calls[name] = package(
            f'application/xop+xml; charset=utf-8; type="{info}"',
            envelope(namespace, include),
            attachments,
            type="application/xop+xml",
            start="<root@python>",
            **{"start-info": info},
        )
    calls["swa"] = package(
        "text/xml; charset=utf-8",
        envelope(SOAP_11, '<s:page href="cid:page@python"/>'),
        attachments,
        type="text/xml",
    )
    out = {}
    for name, (content_type, body) in calls.items():
        address = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(address.netloc)
        headers = {"Content-Type": content_type, "SOAPAction": '"urn:store"'}
        connection.request("POST", address.path, body, headers)
        answer = connection.getresponse()
        said = answer.headers["Content-Type"]
        _, parts = read(said, answer.read())
        out[name] = {"status": answer.status, "type": said, "parts": parts}
    return out


def with_zeep(url):
    import zeep

    found = zeep.Client(url).service.Fetch(sku="a")
    return {"page": base64.b64encode(found).decode()}


def form(url):
    import requests

    files = [
        ("scan", ("Seite ä.tif", PAGE, "image/tiff")),
        ("scan", ("two.bin", b"\r\n", "application/octet-stream")),
    ]
    answer = requests.post(url, data={"note": "ä & b = c"}, files=files)
    return {"status": answer.status_code, "text": answer.text}


def serve(application):
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_):
            pass

    server = make_server("127.0.0.1", 0, application, handler_class=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


def service(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    message, parts = read(environ["CONTENT_TYPE"], body)
    sums = " ".join(
        hashlib.sha256(base64.b64decode(part["octets"])).hexdigest() for part in parts[1:]
    )
    kind = message.get_param("type")
    root = base64.b64decode(parts[0]["octets"]).decode()
    namespace = SOAP_12 if SOAP_12 in root else SOAP_11
    info = "application/soap+xml" if namespace == SOAP_12 else "text/xml"
    answer = (
        f'<e:Envelope xmlns:e="{namespace}"><e:Body><s:FetchResponse xmlns:s="urn:s">'
        f'<s:page><x:Include xmlns:x="{XOP}" href="cid:page%40python"/></s:page>'
        f"<!-- {kind} {sums} --></s:FetchResponse></e:Body></e:Envelope>"
    )
    content_type, octets = package(
        f'application/xop+xml; charset=utf-8; type="{info}"',
        answer,
        [("page@python", "p.bin", PAGE)],
        type="application/xop+xml",
        **{"start-info": info},
    )
    start_response("200 OK", [("Content-Type", content_type)])
    return [octets]


def spyne_service():
    from spyne import Application, ByteArray, ServiceBase, Unicode, rpc
    from spyne.protocol.soap import Soap11
    from spyne.server.wsgi import WsgiApplication

    class Store(ServiceBase):
        @rpc(ByteArray, _returns=Unicode)
        def Store(ctx, page):
            return hashlib.sha256(b"".join(page)).hexdigest()

    made = Application([Store], "urn:s", in_protocol=Soap11(), out_protocol=Soap11())
    return WsgiApplication(made)


mode = sys.argv[1]
if mode == "service":
    serve(service)
elif mode == "spyne":
    serve(spyne_service())
else:
    print(json.dumps({"client": client, "zeep": with_zeep, "form": form}[mode](sys.argv[2])))
