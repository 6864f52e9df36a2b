use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response,
    header::{
        ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_TYPE, DATE, ETAG, HOST,
        IF_MATCH, USER_AGENT, VIA,
    },
};
use http_body_util::Full;

pub type ApiRequest = Request<Full<Bytes>>;
pub type ApiResponse = Response<Full<Bytes>>;

/// Numbers of headers in the tables: none, a typical number, the number at which one more makes the
/// map grow, and many.
pub const HEADERS: [usize; 4] = [0, 4, 6, 12];

static NAMES: [HeaderName; 12] = [
    CONTENT_TYPE,
    ACCEPT,
    USER_AGENT,
    HeaderName::from_static("x-restli-protocol-version"),
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CACHE_CONTROL,
    ETAG,
    HOST,
    IF_MATCH,
    DATE,
    VIA,
];

/// Builds a request with the given number of headers, at most twelve.
pub fn request(headers: usize) -> ApiRequest {
    let mut request = Request::post("https://api.linkedin.com/v2/people?q=1")
        .body(Full::new(Bytes::from_static(b"{\"name\":\"Ada\"}")))
        .expect("the request is well-formed");
    for name in &NAMES[..headers] {
        let value = HeaderValue::from_static("application/json");
        request.headers_mut().insert(name.clone(), value);
    }
    request
}
