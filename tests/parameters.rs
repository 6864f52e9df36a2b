//! Which parameters are the same key, and what is sent for them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use proptest::{
    prelude::*,
    sample::{select, subsequence},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_client_credentials::{
    AccessToken, ClientAuth, ClientCredentialsLayer, TokenCache, TokenEndpoint, TokenParameters,
    TokenRequest,
};

// --- Keys ---

#[test]
fn order_and_repetition_of_scopes_resources_and_audiences_do_not_matter() {
    let parameters = TokenParameters::default()
        .with_scope("a b")
        .with_resource("x:1")
        .with_resource("x:2")
        .with_audience("one")
        .with_audience("two");
    let reordered = TokenParameters::default()
        .with_audience("two")
        .with_scope("b")
        .with_resource("x:2")
        .with_audience("one")
        .with_scope("  a  b ")
        .with_resource("x:1")
        .with_audience("two");

    assert_eq!(parameters, reordered);
    assert_eq!(reordered.scopes(), ["b", "a"]);
    assert_eq!(reordered.resources(), ["x:2", "x:1"]);
    assert_eq!(reordered.audiences(), ["two", "one"]);
}

#[test]
fn other_parameters_are_sorted_by_name_and_keep_the_order_of_their_values() {
    let none = TokenParameters::default;
    let parameters = none().with_parameter("y", "1").with_parameter("x", "2");
    let parameters = parameters.with_parameter("x", "1");
    let others = |parameters: &TokenParameters| {
        let pairs = parameters.others().iter();
        pairs.map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>()
    };

    assert_eq!(others(&parameters), ["x=2", "x=1", "y=1"]);
    let same = none().with_parameter("x", "2").with_parameter("y", "1");
    assert_eq!(parameters, same.with_parameter("x", "1"));
    let swapped = none().with_parameter("x", "1").with_parameter("x", "2");
    assert_ne!(parameters, swapped.with_parameter("y", "1"));
    let once = none().with_parameter("x", "1");
    assert_ne!(once, once.clone().with_parameter("x", "1"));
}

#[test]
fn different_parameters_are_different_keys() {
    let none = TokenParameters::default;
    let keys = [
        none(),
        none().with_scope("a"),
        none().with_scope("A"),
        none().with_scope("a b"),
        none().with_scope("ab"),
        none().with_scope("a\tb"),
        none().with_resource("a"),
        none().with_audience("a"),
        none().with_audience("a b"),
        none().with_audience("b a"),
        none().with_audience(""),
        none().with_audience("a").with_audience("b"),
        none().with_audience("a").with_resource("b"),
        none().with_parameter("a", "b"),
        none().with_parameter("ab", ""),
        none().with_parameter("", "ab"),
        none().with_parameter("b", "a"),
        none().with_parameter("audience", "a"),
        none().with_tenant(""),
        none().with_tenant("a"),
        none().with_tenant("a").with_scope("a"),
    ];

    for (index, key) in keys.iter().enumerate() {
        for (other_index, other) in keys.iter().enumerate() {
            assert_eq!(key == other, index == other_index, "{key:?} {other:?}");
        }
    }
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
}

#[test]
fn tenant_can_be_read_and_replaced() {
    let parameters = TokenParameters::default().with_scope("a");
    let of_a_tenant = parameters.clone().with_tenant("one").with_tenant("two");

    assert_eq!(parameters.tenant(), None);
    assert_eq!(of_a_tenant.tenant(), Some("two"));
    assert_eq!(of_a_tenant, parameters.with_tenant("two"));
}

#[test]
fn changing_a_clone_changes_neither_the_original_nor_its_hash() {
    let original = TokenParameters::default().with_scope("a");
    let hasher = RandomState::new();
    let before = hasher.hash_one(&original);

    let changed = original.clone().with_scope("b");

    assert_eq!(original.scopes(), ["a"]);
    assert_eq!(hasher.hash_one(&original), before);
    assert_ne!(hasher.hash_one(&changed), before);
    assert_eq!(changed, TokenParameters::default().with_scope("b a"));
}

#[test]
fn debug_shows_all_values() {
    let parameters = TokenParameters::default()
        .with_scope("a")
        .with_resource("x:1")
        .with_audience("one")
        .with_parameter("y", "1")
        .with_tenant("t");

    let shown = r#"TokenParameters { scopes: ["a"], resources: ["x:1"], audiences: ["one"], others: [("y", "1")], tenant: Some("t") }"#;
    assert_eq!(format!("{parameters:?}"), shown);
}

#[test]
fn large_sets_in_opposite_orders_are_compared_quickly() {
    const MANY: usize = 20_000;
    let scope = |index: usize| format!("scope-{index} ");
    let ascending: String = (0..MANY).map(scope).collect();
    let descending: String = (0..MANY).rev().map(scope).collect();

    let one = TokenParameters::default().with_scope(ascending);
    let other = TokenParameters::default().with_scope(descending);

    // Quadratic comparison would take minutes.
    for _ in 0..100 {
        assert!(one == other);
    }
}

proptest! {
    #![proptest_config(cases(4000))]

    #[test]
    fn a_key_is_what_is_sent_whatever_the_order(
        (steps, other_steps) in two_histories(),
    ) {
        let (parameters, other) = (after(&steps), after(&other_steps));
        let is_equal = Canonical::after(&steps) == Canonical::after(&other_steps);

        prop_assert_eq!(parameters == other, is_equal);
        prop_assert_eq!(other == parameters, is_equal);
        let hasher = RandomState::new();
        let hashes = [&parameters, &other].map(|parameters| hasher.hash_one(parameters));
        // Different parameters with the same hash are not an error, but won't happen here.
        prop_assert_eq!(hashes[0] == hashes[1], is_equal);
    }
}

// --- Requests through a layer ---

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn a_key_is_what_is_sent_and_decides_which_requests_share_a_token(
        (own, other) in two_histories(),
        choices in (any_choice(), any_choice(), any_choice()),
    ) {
        let ask_for = |service: &Stack, choice, steps: &[Step]| service.ask_for(choice, after(steps));
        let service = Stack::new(after(&own));
        let tokens = [
            service.ask_for_own(),
            ask_for(&service, choices.0, &own),
            ask_for(&service, choices.1, &other),
            ask_for(&service, choices.2, &own),
        ];

        let is_equal = Canonical::after(&own) == Canonical::after(&other);
        prop_assert_eq!(&tokens[0], &tokens[1]);
        prop_assert_eq!(&tokens[0], &tokens[3]);
        prop_assert_eq!(tokens[0] == tokens[2], is_equal);
        prop_assert_eq!(service.received().len(), if is_equal { 1 } else { 2 });

        // Each with a cache to itself, so that both send a token request.
        let alone = [(choices.0, &own), (choices.1, &other)].map(|(choice, steps)| {
            let service = Stack::new(TokenParameters::default().with_scope("of the cache"));
            ask_for(&service, choice, steps);
            service.received().remove(0)
        });
        // What is sent keeps its order, which `Debug` shows.
        let shown = |parameters: &TokenParameters| format!("{parameters:?}");
        prop_assert_eq!(shown(&alone[0]), shown(&after(&own)));
        prop_assert_eq!(shown(&alone[1]), shown(&after(&other)));
        if is_equal {
            let [one, other] = alone.map(|parameters| sent(parameters).sorted());
            prop_assert_eq!(one, other);
        }
    }
}

/// How a request chooses its parameters.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Extension,
    Function,
    /// The extension wins.
    Both,
}

fn any_choice() -> impl Strategy<Value = Choice> {
    prop_oneof![
        Just(Choice::Extension),
        Just(Choice::Function),
        Just(Choice::Both)
    ]
}

/// What the function of the layer returns.
#[derive(Clone)]
struct ByFunction(TokenParameters);

/// A layer around an API that answers with the token that it gets. Each token request returns another
/// token.
struct Stack {
    service: tower::util::BoxCloneService<http::Request<String>, http::Response<String>, BoxError>,
    received: Arc<Mutex<Vec<TokenParameters>>>,
}

impl Stack {
    fn new(own: TokenParameters) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let tokens = service_fn({
            let received = Arc::clone(&received);
            move |request: TokenRequest| {
                let mut received = received.lock().unwrap();
                received.push(request.parameters);
                let token = AccessToken::new(format!("token-{}", received.len()));
                async move { token }
            }
        });
        let echo = service_fn(|request: http::Request<String>| {
            let token = request.headers()["authorization"]
                .to_str()
                .unwrap()
                .to_owned();
            async { Ok::<_, BoxError>(http::Response::new(token)) }
        });
        let cache = TokenCache::builder().parameters(own).build(tokens);
        let layer = ClientCredentialsLayer::with_cache(cache).parameters_by(|request| {
            let chosen = request.extensions.get::<ByFunction>();
            chosen.map(|chosen| chosen.0.clone())
        });
        Self {
            service: tower::util::BoxCloneService::new(layer.layer(echo)),
            received,
        }
    }

    /// Returns the token of a request that chooses no parameters.
    fn ask_for_own(&self) -> String {
        self.ask(http::Request::new(String::new()))
    }

    fn ask_for(&self, choice: Choice, parameters: TokenParameters) -> String {
        let mut request = http::Request::new(String::new());
        let extensions = request.extensions_mut();
        match choice {
            Choice::Extension => drop(extensions.insert(parameters)),
            Choice::Function => drop(extensions.insert(ByFunction(parameters))),
            Choice::Both => {
                extensions.insert(parameters);
                let other = TokenParameters::default().with_scope("of the function");
                extensions.insert(ByFunction(other));
            }
        }
        self.ask(request)
    }

    fn ask(&self, request: http::Request<String>) -> String {
        let response = tokio_test::block_on(self.service.clone().oneshot(request));
        response.unwrap().into_body()
    }

    /// The parameters of all token requests, in order.
    fn received(&self) -> Vec<TokenParameters> {
        self.received.lock().unwrap().clone()
    }
}

// --- What is sent ---

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn a_key_is_what_is_sent_and_equal_keys_send_the_same(
        (steps, other_steps) in two_histories(),
    ) {
        let sent = sent(after(&steps));
        let other = self::sent(after(&other_steps));

        if Canonical::after(&steps) == Canonical::after(&other_steps) {
            prop_assert_eq!(sent.sorted(), other.sorted());
        } else if Canonical::without_tenant(&steps) == Canonical::without_tenant(&other_steps) {
            prop_assert_eq!(sent.sorted(), other.sorted(), "a tenant is sent");
        }
    }

    #[test]
    fn scopes_resources_and_audiences_are_sent_once_and_in_order(steps in history()) {
        let sent = sent(after(&steps));
        // The endpoint has a scope of its own.
        let is_refused = Canonical::after(&steps).others.contains_key("scope");
        prop_assert_eq!(sent.error.is_some(), is_refused);
        if is_refused {
            return Ok(());
        }

        prop_assert_eq!(sent.scopes, first_occurrences("c", &steps, |step| match step {
            Step::Scope(scopes) => scopes,
            _ => "",
        }));
        prop_assert_eq!(sent.resources, first_occurrences("x:3", &steps, |step| match step {
            Step::Resource(resource) => resource,
            _ => "",
        }));
        prop_assert_eq!(sent.audiences, first_occurrences("c", &steps, |step| match step {
            Step::Audience(audience) => audience,
            _ => "",
        }));
    }
}

#[test]
fn parameters_that_would_be_sent_twice_are_refused_whatever_the_order() {
    for (index, steps) in [
        [Step::Scope("a"), Step::Other("scope", "b")],
        [Step::Other("scope", "b"), Step::Scope("a")],
        [Step::Other("scope", "a"), Step::Other("scope", "a")],
        [Step::Other("grant_type", "a"), Step::Scope("a")],
    ]
    .iter()
    .enumerate()
    {
        let outcome = request(plain_endpoint, after(steps));

        assert!(outcome.is_err(), "{index}");
    }
}

/// What a token endpoint got, or the error instead.
#[derive(Debug)]
struct Sent {
    scopes: Vec<String>,
    resources: Vec<String>,
    audiences: Vec<String>,
    rest: Vec<(String, String)>,
    error: Option<String>,
}

impl Sent {
    /// Without the order of scopes, resources and audiences.
    fn sorted(mut self) -> impl PartialEq + std::fmt::Debug {
        self.scopes.sort();
        self.resources.sort();
        self.audiences.sort();
        let Self {
            scopes,
            resources,
            audiences,
            rest,
            error,
        } = self;
        (scopes, resources, audiences, rest, error)
    }
}

/// Sends a token request from an endpoint with parameters of its own.
fn sent(parameters: TokenParameters) -> Sent {
    let endpoint = |http| {
        let endpoint = plain_endpoint(http)
            .scope("c")
            .resource("x:3")
            .audience("c");
        endpoint.parameter("b", "0").parameter("a", "0")
    };
    let (mut rest, error) = match request(endpoint, parameters) {
        Ok(form) => (form, None),
        Err(error) => (vec![], Some(error)),
    };
    // As sent, resources and audiences precede all other parameters.
    let others = rest.iter().position(|(name, _)| name == "b");
    let others = rest.split_off(others.unwrap_or_default());
    let take = |rest: &mut Vec<(String, String)>, name: &str| {
        let (taken, left) = rest.drain(..).partition(|(other, _)| other == name);
        *rest = left;
        let taken: Vec<(String, String)> = taken;
        taken
            .into_iter()
            .map(|(_, value)| value)
            .collect::<Vec<_>>()
    };
    let scopes = take(&mut rest, "scope").join(" ");
    let (resources, audiences) = (take(&mut rest, "resource"), take(&mut rest, "audience"));
    rest.extend(others);
    Sent {
        scopes: scopes.split_terminator(' ').map(str::to_owned).collect(),
        resources,
        audiences,
        rest,
        error,
    }
}

type Http =
    tower::util::BoxCloneService<http::Request<Full<Bytes>>, http::Response<String>, Infallible>;

fn plain_endpoint(http: Http) -> TokenEndpoint {
    TokenEndpoint::new(http, "https://auth.example/token", ClientAuth::none("id")).unwrap()
}

/// Returns the form that was sent, or the error.
fn request(
    endpoint: impl FnOnce(Http) -> TokenEndpoint,
    parameters: TokenParameters,
) -> Result<Vec<(String, String)>, String> {
    let form = Arc::new(Mutex::new(vec![]));
    let seen = Arc::clone(&form);
    let http = service_fn(move |request: http::Request<Full<Bytes>>| {
        let seen = Arc::clone(&seen);
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let pairs = form_urlencoded::parse(&body).into_owned();
            seen.lock().unwrap().extend(pairs);
            Ok(http::Response::new(r#"{"access_token":"t"}"#.to_owned()))
        }
    });
    let tokens = endpoint(Http::new(http));

    let outcome = tokio_test::block_on(tokens.oneshot(TokenRequest::new(parameters)));

    let form = std::mem::take(&mut *form.lock().unwrap());
    outcome.map(|_| form).map_err(|error| error.to_string())
}

/// Returns the endpoint's own word and those of all steps, without repetitions.
fn first_occurrences(
    own: &'static str,
    steps: &[Step],
    words: impl Fn(&Step) -> &'static str,
) -> Vec<String> {
    let mut found: Vec<String> = vec![own.to_owned()];
    for word in steps.iter().flat_map(|step| words(step).split_whitespace()) {
        if !found.iter().any(|other| other == word) {
            found.push(word.to_owned());
        }
    }
    found
}

// --- The model ---

/// The canonical form, computed slowly and without the library.
#[derive(Debug, Default, PartialEq)]
struct Canonical {
    scopes: BTreeSet<String>,
    resources: BTreeSet<String>,
    audiences: BTreeSet<String>,
    others: BTreeMap<String, Vec<String>>,
    tenant: Option<String>,
}

impl Canonical {
    fn after(steps: &[Step]) -> Self {
        let mut canonical = Self::default();
        for step in steps {
            match *step {
                Step::Scope(scope) => canonical
                    .scopes
                    .extend(scope.split_whitespace().map(Into::into)),
                Step::Resource(resource) => drop(canonical.resources.insert(resource.into())),
                Step::Audience(audience) => drop(canonical.audiences.insert(audience.into())),
                Step::Other(name, value) => {
                    let values = canonical.others.entry(name.into()).or_default();
                    values.push(value.into());
                }
                Step::Tenant(label) => canonical.tenant = Some(label.into()),
            }
        }
        canonical
    }

    fn without_tenant(steps: &[Step]) -> Self {
        let tenant = None;
        Self {
            tenant,
            ..Self::after(steps)
        }
    }
}

/// One call of a `with_*` method.
#[derive(Clone, Copy, Debug)]
enum Step {
    Scope(&'static str),
    Resource(&'static str),
    Audience(&'static str),
    Other(&'static str, &'static str),
    Tenant(&'static str),
}

fn after(steps: &[Step]) -> TokenParameters {
    let none = TokenParameters::default();
    steps.iter().fold(none, |parameters, step| match *step {
        Step::Scope(scope) => parameters.with_scope(scope),
        Step::Resource(resource) => parameters.with_resource(resource),
        Step::Audience(audience) => parameters.with_audience(audience),
        Step::Other(name, value) => parameters.with_parameter(name, value),
        Step::Tenant(label) => parameters.with_tenant(label),
    })
}

fn any_step() -> impl Strategy<Value = Step> + Clone {
    let scopes = vec!["a", "b", "a b", " b  a ", ""];
    prop_oneof![
        select(scopes).prop_map(Step::Scope),
        prop_oneof![Just("x:1"), Just("x:2"), Just("x:3")].prop_map(Step::Resource),
        prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(Step::Audience),
        (
            prop_oneof![Just("a"), Just("b"), Just("audience"), Just("scope")],
            prop_oneof![Just("1"), Just("2")],
        )
            .prop_map(|(name, value)| Step::Other(name, value)),
        prop_oneof![Just("a"), Just("")].prop_map(Step::Tenant),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> + Clone {
    proptest::collection::vec(any_step(), 0..8)
}

/// Two histories; in many cases, one is the other in another order and with repetitions.
fn two_histories() -> impl Strategy<Value = (Vec<Step>, Vec<Step>)> {
    let reordered = history().prop_flat_map(|steps| {
        let repeated = subsequence(steps.clone(), 0..=steps.len());
        let other = repeated.prop_flat_map({
            let steps = steps.clone();
            move |repeated| Just([steps.clone(), repeated].concat()).prop_shuffle()
        });
        (Just(steps.clone()), other)
    });
    let few = proptest::collection::vec(any_step(), 0..3);
    prop_oneof![
        (few.clone(), few),
        reordered.clone(),
        // With at most one step more.
        (reordered, any_step()).prop_map(|((steps, mut other), step)| {
            other.push(step);
            (steps, other)
        }),
    ]
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        cases,
        ..ProptestConfig::default()
    }
}
