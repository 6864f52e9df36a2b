//! Tokens are sent only to the destinations that may have them.

mod support;

use http::{Method, Request, Response, StatusCode, Uri, header::AUTHORIZATION};
use support::{Issuer, rejection};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_client_credentials::{
    ClientCredentialsLayer, Error, TokenOmitted, TokenOutcome, replay::CloneBody,
};

const API: &str = "https://api.example";

/// Whether a request carried the token, and why not.
type Fate = Result<(), TokenOmitted>;

const OTHER: Fate = Err(TokenOmitted::OtherOrigin);
const PLAIN: Fate = Err(TokenOmitted::PlainHttp);

#[tokio::test(start_paused = true)]
async fn tokens_go_over_plain_http_only_to_loopback() {
    for (uri, fate) in [
        ("https://api.example/v2/people", Ok(())),
        ("HTTPS://api.example/", Ok(())),
        ("https://api.example:80/", Ok(())),
        ("http://api.example/", PLAIN),
        ("HTTP://api.example/", PLAIN),
        ("http://api.example:443/", PLAIN),
        ("ws://api.example/", PLAIN),
        ("WS://api.example/", PLAIN),
        // What these schemes mean is up to the client.
        ("wss://api.example/", PLAIN),
        ("wss://localhost/", PLAIN),
        ("unix://2f746d70/", PLAIN),
        ("unix://localhost/", PLAIN),
        ("ftp://api.example/", PLAIN),
        ("ftp://localhost/", PLAIN),
        ("http+unix://2f746d70/", PLAIN),
        ("h2c://api.example/", PLAIN),
        // Five letters, or starting with http.
        ("httpx://api.example/", PLAIN),
        ("xttps://api.example/", PLAIN),
        ("https2://api.example/", PLAIN),
        ("http://localhost/", Ok(())),
        ("http://LOCALHOST.:8080/", Ok(())),
        ("http://127.0.0.1:8080/", Ok(())),
        ("http://127.9.9.9/", Ok(())),
        ("http://[::1]:8080/", Ok(())),
        ("http://[0:0:0:0:0:0:0:1]/", Ok(())),
        // Look like loopback, but lead elsewhere or may do so.
        ("http://localhost.example/", PLAIN),
        ("http://127.0.0.1.example/", PLAIN),
        ("http://localhost@api.example/", PLAIN),
        ("http://127.0.0.1:80@api.example/", PLAIN),
        ("http://[::2]/", PLAIN),
        ("http://[::ffff:8.8.8.8]/", PLAIN),
        ("http://0.0.0.0/", PLAIN),
        ("http://2130706433/", PLAIN),
        ("http://10.0.0.1/", PLAIN),
        // Not parsed, so the scheme keeps its case.
        ("built https://api.example/", Ok(())),
        ("built HTTPS://api.example/", PLAIN),
        ("built Https://api.example/", PLAIN),
        ("built httpS://api.example:443/", PLAIN),
        ("built HTTP://api.example/", PLAIN),
        ("built http://localhost/", Ok(())),
        // Without a scheme.
        ("/v2/people", Ok(())),
        // The proxy that opens the tunnel would read it.
        ("CONNECT api.example:443", OTHER),
        // Extended CONNECT over HTTP/2 (RFC 8441) opens no tunnel.
        ("CONNECT https://api.example/socket", Ok(())),
    ] {
        assert_eq!(
            fate_of(ClientCredentialsLayer::with_cache, uri, &[]).await,
            fate,
            "{uri}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_go_over_plain_http_anywhere_if_allowed() {
    let allowing = |cache| ClientCredentialsLayer::with_cache(cache).allow_http();

    for uri in [
        "http://api.example/",
        "built HTTPS://api.example/",
        "ws://api.example/",
        "wss://api.example/",
        "unix://2f746d70/",
        "ftp://api.example/",
    ] {
        assert_eq!(fate_of(allowing, uri, &[]).await, Ok(()), "{uri}");
    }
    assert_eq!(
        fate_of(allowing, "CONNECT api.example:443", &[]).await,
        OTHER
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_go_only_to_allowed_origins() {
    let origins = [
        API,
        "https://127.0.0.1:8443",
        "https://[2001:db8::1]",
        "http://localhost:8080",
    ];
    let layer = |cache| {
        ClientCredentialsLayer::with_cache(cache)
            .allowed_origins(origins)
            .unwrap()
    };

    for (uri, fate) in [
        (
            "https://api.example/v2/people?x=https://evil.example/",
            Ok(()),
        ),
        ("https://API.Example/", Ok(())),
        ("https://api.example./", Ok(())),
        ("https://api.example:443/", Ok(())),
        ("https://api.example:/", Ok(())),
        ("https://127.0.0.1:8443/", Ok(())),
        ("https://[2001:db8::1]/", Ok(())),
        ("https://[2001:0DB8:0:0::1]:443/", Ok(())),
        ("http://localhost:8080/", Ok(())),
        ("https://ada:secret@api.example/", Ok(())),
        // Another port, another scheme.
        ("https://api.example:8443/", OTHER),
        ("https://api.example:80/", OTHER),
        ("https://127.0.0.1/", OTHER),
        ("http://localhost/", OTHER),
        ("https://localhost:8080/", OTHER),
        ("wss://api.example/", OTHER),
        ("unix://api.example:443/", OTHER),
        // A client may send these in plain text.
        ("built HTTPS://api.example/", PLAIN),
        ("built Https://127.0.0.1:8443/", PLAIN),
        ("built HTTP://localhost:8080/", PLAIN),
        ("http://api.example/", PLAIN),
        ("http://api.example:443/", PLAIN),
        // Look-alikes.
        ("https://api.example@evil.example/", OTHER),
        ("https://api.example:443@evil.example/", OTHER),
        ("https://api.example.evil.example/", OTHER),
        ("https://evil.example/api.example", OTHER),
        ("https://evil-api.example/", OTHER),
        ("https://xapi.example/", OTHER),
        ("https://example/", OTHER),
        ("https://api.example../", OTHER),
        ("https://api.exampl\u{65}x/", OTHER),
        ("https://xn--pi-7kc.example/", OTHER),
        ("https://api.example:99999/", OTHER),
        ("https://[2001:db8::2]/", OTHER),
        ("https://[2001:db8::1]evil.example/", OTHER),
        ("https://[::ffff:127.0.0.1]:8443/", OTHER),
        // No host is named.
        ("/v2/people", OTHER),
        ("CONNECT api.example:443", OTHER),
        ("CONNECT https://api.example/socket", Ok(())),
    ] {
        assert_eq!(fate_of(layer, uri, &[]).await, fate, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_go_over_wss_and_sockets_only_to_origins_with_that_scheme() {
    let origins = [
        "https://api.example",
        "WSS://ws.example",
        "unix://2F746D702F736F636B",
        "ws://plain.example",
    ];
    let layer = |cache| {
        ClientCredentialsLayer::with_cache(cache)
            .allowed_origins(origins)
            .unwrap()
    };

    for (uri, fate) in [
        ("wss://ws.example/chat", Ok(())),
        ("wss://ws.example:443/", Ok(())),
        ("wss://ws.example:8443/", OTHER),
        ("wss://api.example/", OTHER),
        ("wss://ws.example.evil.example/", OTHER),
        ("https://ws.example/", OTHER),
        ("built WSS://ws.example/", PLAIN),
        ("unix://2f746d702f736f636b/v1", Ok(())),
        // As hyperlocal writes it.
        ("unix://2f746d702f736f636b:0/v1", Ok(())),
        ("unix://2f746d70/", OTHER),
        ("unix://api.example/", OTHER),
        ("built UNIX://2f746d702f736f636b/", PLAIN),
        ("ws://plain.example/", PLAIN),
        ("http://ws.example/", PLAIN),
    ] {
        assert_eq!(fate_of(layer, uri, &[]).await, fate, "{uri}");
    }
}

/// Plain http is allowed, but not to an origin of another scheme.
#[tokio::test(start_paused = true)]
async fn tokens_go_to_https_origins_only_over_https_if_http_is_allowed() {
    let layer = |cache| {
        ClientCredentialsLayer::with_cache(cache)
            .allowed_origins([API])
            .unwrap()
            .allow_http()
    };

    assert_eq!(fate_of(layer, "https://api.example/", &[]).await, Ok(()));
    for uri in [
        "http://api.example:443/",
        "built HTTPS://api.example/",
        "built HTTPS://api.example:443/",
        "wss://api.example/",
        "wss://api.example:443/",
    ] {
        assert_eq!(fate_of(layer, uri, &[]).await, OTHER, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn allowed_origins_of_several_calls_add_up() {
    let none: [&str; 0] = [];
    let layer = |cache| {
        let layer = ClientCredentialsLayer::with_cache(cache);
        let layer = layer.allowed_origins([API]).unwrap();
        let layer = layer.allowed_origins(["https://www.example"]).unwrap();
        layer.allowed_origins(none).unwrap()
    };

    for (uri, fate) in [
        ("https://api.example/", Ok(())),
        ("https://www.example/", Ok(())),
        ("https://evil.example/", OTHER),
    ] {
        assert_eq!(fate_of(layer, uri, &[]).await, fate, "{uri}");
    }
}

/// An origin that was built keeps the case of its scheme, which stands for the usual one.
#[tokio::test(start_paused = true)]
async fn scheme_of_an_allowed_origin_is_taken_in_any_case() {
    let layer = |cache| {
        ClientCredentialsLayer::with_cache(cache)
            .allowed_origins([uri("built HTTPS://api.example/")])
            .unwrap()
    };

    assert_eq!(fate_of(layer, "https://api.example/", &[]).await, Ok(()));
    assert_eq!(
        fate_of(layer, "built HTTPS://api.example/", &[]).await,
        PLAIN
    );
}

#[tokio::test(start_paused = true)]
async fn request_in_origin_form_goes_by_its_host_header() {
    let layer = |cache| {
        let layer = ClientCredentialsLayer::with_cache(cache);
        layer
            .allowed_origins([API, "http://localhost:8080"])
            .unwrap()
    };

    for (uri, hosts, fate) in [
        ("/v2/people", &["api.example"][..], Ok(())),
        ("/v2/people", &["API.example:443"], Ok(())),
        ("/v2/people", &["api.example."], Ok(())),
        ("/v2/people", &["localhost:8080"], Ok(())),
        ("/v2/people", &["localhost"], OTHER),
        ("/v2/people", &["api.example:80"], OTHER),
        ("/v2/people", &["evil.example"], OTHER),
        ("/v2/people", &["api.example@evil.example"], OTHER),
        ("/v2/people", &["evil.example@api.example"], OTHER),
        ("/v2/people", &["]@[a"], OTHER),
        ("/v2/people", &["api.example:+443"], OTHER),
        ("/v2/people", &["evil.example:443#@api.example"], OTHER),
        ("/v2/people", &[""], OTHER),
        ("/v2/people", &["api.example", "evil.example"], OTHER),
        ("*", &["api.example"], Ok(())),
        // A server with several virtual hosts goes by `Host`.
        ("https://api.example/", &["evil.example"], OTHER),
        ("https://evil.example/", &["api.example"], OTHER),
        ("https://api.example/", &["api.example"], Ok(())),
    ] {
        assert_eq!(fate_of(layer, uri, hosts).await, fate, "{uri} {hosts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_of_origins_allows_no_token() {
    let none: [&str; 0] = [];
    let layer = |cache| {
        ClientCredentialsLayer::with_cache(cache)
            .allowed_origins(none)
            .unwrap()
    };

    assert_eq!(fate_of(layer, "https://api.example/", &[]).await, OTHER);
}

/// No token is requested, and a 401 from such a host does not count as a rejection.
#[tokio::test(start_paused = true)]
async fn request_to_another_origin_passes_untouched() {
    let issuer = Issuer::new();
    let echo = service_fn(async |request: Request<String>| {
        let mut response = rejection();
        *response.headers_mut() = request.headers().clone();
        *response.body_mut() = request.into_body();
        Ok::<_, BoxError>(response)
    });
    let layer = ClientCredentialsLayer::new(issuer.service())
        .allowed_origins([API])
        .unwrap();
    let service = layer.layer(echo);
    let request = || Request::post("https://evil.example/").header("x-a", "1");

    let response = service
        .clone()
        .oneshot(request().body("Ada".into()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        (response.headers().len(), &response.headers()["x-a"]),
        (1, &"1".parse().unwrap())
    );
    assert_eq!(response.body(), "Ada");
    let outcome = response.extensions().get::<TokenOutcome>().unwrap();
    assert_eq!(outcome.omitted(), Some(TokenOmitted::OtherOrigin));
    assert!(outcome.to_string().contains("another origin"));

    let own = request()
        .header(AUTHORIZATION, "Basic b3du")
        .body("Ada".into())
        .unwrap();
    let response = service.oneshot(own).await.unwrap();
    assert_eq!(response.headers()[AUTHORIZATION], "Basic b3du");
    assert!(response.extensions().is_empty());
    assert_eq!(issuer.requests(), 0);
}

#[test]
fn unusable_origins_are_refused() {
    let not_absolute = "origin must be absolute, such as https://api.example";
    let has_a_path = "origin has a path or query; give only scheme, host and port";
    let no_host_or_port = "origin has no host, or no valid port for its scheme";
    let not_one_host = "origin does not name one host; patterns never match, so give each host an \
                        origin of its own, such as https://api.example";
    for (origin, message) in [
        ("api.example", not_absolute),
        ("/v2", not_absolute),
        ("", "origin is not a valid URL"),
        ("https://", "origin is not a valid URL"),
        ("https://a b/", "origin is not a valid URL"),
        ("https://api.example/v2", has_a_path),
        ("https://api.example/?a", has_a_path),
        (
            "https://ada:geheim@api.example",
            "origin contains user information; remove it",
        ),
        ("https://api.example:99999", no_host_or_port),
        ("ftp://api.example", no_host_or_port),
        ("https://:443", no_host_or_port),
        ("https://*.example", not_one_host),
        ("https://*", not_one_host),
        ("https://api.*.example", not_one_host),
        ("https://api-*.example", not_one_host),
        ("https://*.example:8443", not_one_host),
        ("https://**.example", not_one_host),
        ("wss://*.example", not_one_host),
        ("unix://*", not_one_host),
        ("https://.example", not_one_host),
        ("https://api..example", not_one_host),
        ("https://api.example..", not_one_host),
        ("https://api.example,www.example", not_one_host),
        ("https://api.example;www.example", not_one_host),
        ("https://(api+www).example", not_one_host),
        ("https://$api.example", not_one_host),
        ("*", not_absolute),
        ("*.example", not_absolute),
    ] {
        let cache = Issuer::new().cache();
        let refused = ClientCredentialsLayer::with_cache(cache).allowed_origins([API, origin]);
        let error: Error = refused
            .err()
            .unwrap_or_else(|| panic!("{origin} is accepted"));
        assert!(error.is_configuration(), "{origin}");
        assert_eq!(error.to_string(), message, "{origin}");
        assert!(!format!("{error} {error:?}").contains("geheim"));
    }
}

/// Parses a URI, or builds one if the text begins with "built".
fn uri(text: &str) -> Uri {
    let Some(parts) = text.strip_prefix("built ") else {
        return text.parse().unwrap();
    };
    let (scheme, rest) = parts.split_once("://").unwrap();
    let (authority, path) = rest.split_once('/').unwrap();
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(format!("/{path}"))
        .build()
        .unwrap()
}

/// Sends one request, which may be "CONNECT host:port", and returns whether it carried the token.
async fn fate_of(
    layer: impl Fn(tower_client_credentials::TokenCache) -> ClientCredentialsLayer<CloneBody>,
    uri: &str,
    hosts: &[&str],
) -> Fate {
    let has_token = service_fn(async |request: Request<String>| {
        let has_token = request.headers().contains_key(AUTHORIZATION);
        Ok::<_, BoxError>(Response::new(has_token.to_string()))
    });
    let mut request = Request::new(String::new());
    let target = uri.strip_prefix("CONNECT ");
    if target.is_some() {
        *request.method_mut() = Method::CONNECT;
    }
    *request.uri_mut() = self::uri(target.unwrap_or(uri));
    for host in hosts {
        request.headers_mut().append("host", host.parse().unwrap());
    }
    let cache = Issuer::new().cache();
    cache.token().await.unwrap();

    let response = layer(cache)
        .layer(has_token)
        .oneshot(request)
        .await
        .unwrap();

    let outcome = response.extensions().get::<TokenOutcome>();
    match outcome.and_then(TokenOutcome::omitted) {
        None => assert_eq!(response.body(), "true", "{uri}"),
        Some(_) => assert_eq!(response.body(), "false", "{uri}"),
    }
    outcome.and_then(TokenOutcome::omitted).map_or(Ok(()), Err)
}
