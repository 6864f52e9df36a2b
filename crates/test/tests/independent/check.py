"""Authlib against the program."""

import os

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session

SERVER = os.environ["SERVER"]
TOKEN_URL = f"{SERVER}/token"
AWKWARD = (os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
PLUS = (os.environ["PLUS_ID"], os.environ["PLUS_SECRET"])
SIMPLE = (os.environ["SIMPLE_ID"], os.environ["SIMPLE_SECRET"])


def session(credentials, method, scope="orders.read"):
    return OAuth2Session(*credentials, token_endpoint_auth_method=method, scope=scope)


def fetch(client):
    return client.fetch_token(TOKEN_URL, grant_type="client_credentials")


def refusal(client):
    try:
        fetch(client)
    except OAuthError as error:
        return error
    raise AssertionError("the server accepted the request")


def accepted(credentials, method):
    client = session(credentials, method)
    token = fetch(client)
    assert token["token_type"] == "Bearer", token
    assert token["expires_in"] == 3600, token
    assert token["scope"] == "orders.read", token
    response = client.post(f"{SERVER}/orders", data="two chairs")
    assert (response.status_code, response.text) == (200, "two chairs")
    revoked = requests.post(f"{SERVER}/control/revoke", json={"token": token["access_token"]})
    assert revoked.json() == {"revoked": True}
    assert client.get(f"{SERVER}/orders").status_code == 401


accepted(SIMPLE, "client_secret_basic")
accepted(SIMPLE, "client_secret_post")
accepted(AWKWARD, "client_secret_post")
for method in ["client_secret_basic", "client_secret_post"]:
    assert refusal(session(("simple", "wrong"), method)).error == "invalid_client"
# Authlib doesn't form-encode before Base64 (RFC 6749 2.3.1), and the server says so.
error = refusal(session(PLUS, "client_secret_basic"))
assert error.error == "invalid_client", error
assert "not form-encoded" in error.description, error
accepted(PLUS, "client_secret_post")
print("Authlib: all checks passed")
