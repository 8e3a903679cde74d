"""A SOAP 1.1 service (spyne) on a free port, which it prints: soap_service.py."""

from wsgiref.simple_server import WSGIRequestHandler, make_server

from spyne import Application, Fault, Integer, ServiceBase, Unicode, rpc
from spyne.protocol.soap import Soap11
from spyne.server.wsgi import WsgiApplication


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Stock(ServiceBase):
    @rpc(Unicode, _returns=Integer)
    def level(ctx, sku):
        if sku == "none":
            raise Fault("Client.NoSuchItem", "no such item")
        return 42


application = Application([Stock], "urn:test:stock", in_protocol=Soap11(validator="lxml"), out_protocol=Soap11())
server = make_server("127.0.0.1", 0, WsgiApplication(application), handler_class=Quiet)
print(server.server_port, flush=True)
server.serve_forever()
