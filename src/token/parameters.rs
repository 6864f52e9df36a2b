/// The parameters of a token request: scopes, resources, audiences and others.
///
/// Don't add secrets, because `Debug` shows all values.
///
/// # Examples
///
/// ```
/// use tower_client_credentials::TokenParameters;
///
/// let parameters = TokenParameters::default()
///     .with_scope("orders.read orders.write")
///     .with_audience("https://api.example")
///     .with_resource("https://api.example/orders")
///     .with_parameter("organization", "example");
/// assert_eq!(parameters.scopes(), ["orders.read", "orders.write"]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenParameters {
    scopes: Vec<String>,
    resources: Vec<String>,
    audiences: Vec<String>,
    others: Vec<(String, String)>,
}

impl TokenParameters {
    /// Adds a scope, or several separated by spaces (RFC 6749 §3.3).
    ///
    /// A [`TokenEndpoint`](crate::TokenEndpoint) refuses scopes with characters that RFC 6749 doesn't
    /// allow, such as quotation marks and line breaks.
    #[must_use]
    pub fn with_scope(mut self, scope: impl AsRef<str>) -> Self {
        let scopes = scope
            .as_ref()
            .split(' ')
            .filter(|scope| !scope.is_empty())
            .map(str::to_owned);
        self.scopes.extend(scopes);
        self
    }

    /// Adds a resource, an absolute URI without a fragment (RFC 8707 §2).
    ///
    /// A [`TokenEndpoint`](crate::TokenEndpoint) refuses other texts.
    #[must_use]
    pub fn with_resource(mut self, resource: impl Into<String>) -> Self {
        self.resources.push(resource.into());
        self
    }

    /// Adds an audience (RFC 8693 §2.1).
    #[must_use]
    pub fn with_audience(mut self, audience: impl Into<String>) -> Self {
        self.audiences.push(audience.into());
        self
    }

    /// Adds another parameter. A name can be added several times.
    #[must_use]
    pub fn with_parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.others.push((name.into(), value.into()));
        self
    }

    /// Returns the scopes in the order in which they were added.
    ///
    /// The scopes are sent as one parameter, separated by spaces.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Returns the resources in the order in which they were added.
    ///
    /// Each resource is sent as a separate parameter.
    pub fn resources(&self) -> &[String] {
        &self.resources
    }

    /// Returns the audiences in the order in which they were added.
    ///
    /// Each audience is sent as a separate parameter.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Returns the names and values of the other parameters in the order in which they were added.
    pub fn others(&self) -> &[(String, String)] {
        &self.others
    }
}
