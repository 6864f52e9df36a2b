//! Reads error replies of a token endpoint, so that callgrind can count the instructions:
//! `error_replies BYTES REPLIES`. The bench `budgets` runs it.

use std::{env, process::exit};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use tower::{BoxError, ServiceExt, service_fn};
use tower_client_credentials::{ClientAuth, TokenEndpoint, TokenRequest};

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [bytes, replies] = &arguments[..] else {
        eprintln!("usage: error_replies BYTES REPLIES");
        exit(2);
    };
    let body = Bytes::from(error_reply(bytes.parse()?));
    let http = service_fn(move |_: Request<Full<Bytes>>| {
        let reply = Response::builder()
            .status(400)
            .body(Full::new(body.clone()));
        async { reply }
    });
    let auth = ClientAuth::client_secret_post("my-client", "aaaaaaaaaaaaaaaa");
    let tokens = TokenEndpoint::new(http, "https://auth.example/token", auth)?;
    for _ in 0..replies.parse()? {
        let answer = tokens.clone().oneshot(TokenRequest::default());
        let error = answer
            .now_or_never()
            .expect("the reply is there")
            .expect_err("it is an error");
        assert!(error.is_refused() && error.description().is_some());
    }
    Ok(())
}

/// A reply whose tokens almost occur in its texts, again and again.
fn error_reply(bytes: usize) -> String {
    const MEMBERS: [(&str, &str); 6] = [
        ("access_token", "b"),
        ("refresh_token", "b"),
        ("id_token", "b"),
        ("error", ""),
        ("error_description", ""),
        ("error_uri", ""),
    ];
    const LONGEST_NAME: usize = r#"{"error_description":"b","#.len();
    let length = bytes / MEMBERS.len() - LONGEST_NAME;
    let members = MEMBERS.map(|(name, end)| format!(r#""{name}":"{}{end}""#, "a".repeat(length)));
    format!("{{{}}}", members.join(","))
}
