"""SOAP clients as users have them: soap_clients.py zeep|suds URL. Each reads the WSDL at URL and
calls the operations of the depot; what came of it is printed as JSON."""

import json
import sys


def with_zeep(url):
    import zeep
    import zeep.exceptions

    out = {}
    for port in ("DepotPort11", "DepotPort12"):
        client = zeep.Client(url)
        depot = client.bind("DepotService", port)
        item = {"sku": "AB-123", "quantity": 2, "priority": True}
        booked = depot.Book(depot="north", item=[item], _soapheaders={"trace": "t-1"})
        refused = None
        try:
            depot.Book(depot="north", item=[dict(item, sku="wrong")], _soapheaders={"trace": "t-1"})
        except zeep.exceptions.Fault as fault:
            refused = {"code": fault.code, "message": fault.message}
        out[port] = {
            "address": depot._binding_options["address"],
            "booking": booked.booking,
            "on": booked.on.isoformat(),
            "level": depot.Level(sku="AB-123"),
            "note": depot.Note(text="hello"),
            "refused": refused,
        }
    return out


def with_suds(url):
    import suds
    import suds.client

    client = suds.client.Client(url, cache=None)
    client.set_options(port="DepotPort11")
    item = client.factory.create("{urn:test:depot:types}Item")
    item.sku = "AB-123"
    item.quantity = 2
    client.set_options(soapheaders="t-1")
    booked = client.service.Book("north", [item])
    client.set_options(soapheaders=())
    refused = None
    try:
        client.service.Level("wrong")
    except suds.WebFault as fault:
        refused = {"code": fault.fault.faultcode, "message": fault.fault.faultstring}
    return {
        "booking": int(booked.booking),
        "level": int(client.service.Level("AB-123")),
        "refused": refused,
    }


print(json.dumps({"zeep": with_zeep, "suds": with_suds}[sys.argv[1]](sys.argv[2]), default=str))
