use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    mem::take,
    sync::{Arc, LazyLock, OnceLock},
};

/// The parameters of a token request: scopes, resources, audiences and others, and a tenant.
///
/// Don't add secrets, because `Debug` shows all values.
///
/// Clones are cheap and share the values. The hash is computed once, so that a value that is kept and
/// cloned for each request is cheap to look up.
///
/// # Equality
///
/// Two values are equal if their requests can use the same token:
///
/// * The order and repetition of scopes, resources and audiences don't matter. `"a b"` is equal to
///   `"b"` followed by `"a"`. Each is sent once, in the order in which it was first added.
/// * Other parameters are sorted by name. The order and repetition of values with the same name
///   matter.
/// * The tenant matters.
///
/// The token requests of equal values differ only in the order of scopes, resources and audiences.
/// Values are compared as they were added, so `"https://api.example"` and `"https://api.example/"`
/// are different resources.
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
///
/// let reordered = TokenParameters::default()
///     .with_parameter("organization", "example")
///     .with_resource("https://api.example/orders")
///     .with_audience("https://api.example")
///     .with_scope("orders.write")
///     .with_scope("orders.read");
/// assert_eq!(parameters, reordered);
/// ```
#[derive(Clone)]
pub struct TokenParameters {
    shared: Arc<Shared>,
}

#[derive(Clone, Default)]
struct Shared {
    fields: Fields,
    /// Computed when it is first needed.
    hash: OnceLock<u64>,
}

/// Everything that a token request can depend on. Derives its comparison, so that a new field can't
/// be sent without being part of the key.
///
/// Boxed slices, because a program may have thousands of keys, and vectors have room for more.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Fields {
    scopes: DistinctTexts,
    resources: DistinctTexts,
    audiences: DistinctTexts,
    /// Names and values, sorted by name.
    others: Box<[(String, String)]>,
    tenant: Option<Box<str>>,
}

impl TokenParameters {
    /// Adds a scope, or several separated by spaces (RFC 6749 §3.3).
    ///
    /// A [`TokenEndpoint`](crate::TokenEndpoint) refuses scopes with characters that RFC 6749 doesn't
    /// allow, such as quotation marks and line breaks.
    #[must_use]
    pub fn with_scope(self, scope: impl AsRef<str>) -> Self {
        let scopes = scope.as_ref().split(' ').filter(|scope| !scope.is_empty());
        self.change(|fields| fields.scopes.add(scopes.map(str::to_owned)))
    }

    /// Adds a resource, an absolute URI without a fragment (RFC 8707 §2).
    ///
    /// A [`TokenEndpoint`](crate::TokenEndpoint) refuses other texts.
    #[must_use]
    pub fn with_resource(self, resource: impl Into<String>) -> Self {
        self.change(|fields| fields.resources.add([resource.into()]))
    }

    /// Adds an audience (RFC 8693 §2.1).
    #[must_use]
    pub fn with_audience(self, audience: impl Into<String>) -> Self {
        self.change(|fields| fields.audiences.add([audience.into()]))
    }

    /// Adds another parameter. A name can be added several times.
    #[must_use]
    pub fn with_parameter(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.change(|fields| {
            let name = name.into();
            // Behind the values that this name already has.
            let index = fields.others.partition_point(|(other, _)| *other <= name);
            let mut others = take(&mut fields.others).into_vec();
            others.insert(index, (name, value.into()));
            fields.others = others.into_boxed_slice();
        })
    }

    /// Sets the tenant: a label that tells identities apart that have the same other parameters.
    ///
    /// The label is never sent, but a token service can read it, for example to choose credentials.
    /// Setting it again replaces it.
    ///
    /// # Examples
    ///
    /// ```
    /// use tower_client_credentials::TokenParameters;
    ///
    /// let orders = TokenParameters::default().with_scope("orders.read");
    /// let of_a_tenant = orders.clone().with_tenant("tenant-1");
    ///
    /// assert_eq!(of_a_tenant.tenant(), Some("tenant-1"));
    /// assert_ne!(of_a_tenant, orders);
    /// ```
    #[must_use]
    pub fn with_tenant(self, label: impl Into<String>) -> Self {
        self.change(|fields| fields.tenant = Some(label.into().into_boxed_str()))
    }

    /// Returns the scopes in the order in which they were added, each once.
    ///
    /// The scopes are sent as one parameter, separated by spaces.
    pub fn scopes(&self) -> &[String] {
        &self.shared.fields.scopes.as_added
    }

    /// Returns the resources in the order in which they were added, each once.
    ///
    /// Each resource is sent as a separate parameter.
    pub fn resources(&self) -> &[String] {
        &self.shared.fields.resources.as_added
    }

    /// Returns the audiences in the order in which they were added, each once.
    ///
    /// Each audience is sent as a separate parameter.
    pub fn audiences(&self) -> &[String] {
        &self.shared.fields.audiences.as_added
    }

    /// Returns the names and values of the other parameters, sorted by name.
    ///
    /// Values with the same name are in the order in which they were added.
    pub fn others(&self) -> &[(String, String)] {
        &self.shared.fields.others
    }

    /// Returns the label of the tenant, if there is one.
    pub fn tenant(&self) -> Option<&str> {
        self.shared.fields.tenant.as_deref()
    }

    fn change(mut self, change: impl FnOnce(&mut Fields)) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.hash = OnceLock::new();
        change(&mut shared.fields);
        self
    }
}

/// Shared, because most caches and token requests have none.
static NO_PARAMETERS: LazyLock<Arc<Shared>> = LazyLock::new(Arc::default);

impl Default for TokenParameters {
    fn default() -> Self {
        let shared = Arc::clone(&NO_PARAMETERS);
        Self { shared }
    }
}

/// Has random seeds, because callers of a program may choose its tenants, and must not be able to
/// choose values whose hashes collide.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl PartialEq for TokenParameters {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared) || self.shared.fields == other.shared.fields
    }
}

impl Eq for TokenParameters {}

/// Writes one `u64`, which is itself a randomly seeded hash.
impl Hash for TokenParameters {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Shared { fields, hash } = &*self.shared;
        state.write_u64(*hash.get_or_init(|| HASHER.hash_one(fields)));
    }
}

impl fmt::Debug for TokenParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fields {
            scopes,
            resources,
            audiences,
            others,
            tenant,
        } = &self.shared.fields;
        f.debug_struct("TokenParameters")
            .field("scopes", &scopes.as_added)
            .field("resources", &resources.as_added)
            .field("audiences", &audiences.as_added)
            .field("others", others)
            .field("tenant", tenant)
            .finish()
    }
}

/// Texts in the order in which they were added, each once. Compared regardless of their order.
#[derive(Clone, Default)]
struct DistinctTexts {
    as_added: Box<[String]>,
    /// Indices of all texts, in the order of the texts.
    sorted: Box<[usize]>,
}

impl DistinctTexts {
    fn add(&mut self, texts: impl IntoIterator<Item = String>) {
        let mut as_added = take(&mut self.as_added).into_vec();
        let mut sorted = take(&mut self.sorted).into_vec();
        for text in texts {
            let search = |index: &usize| as_added[*index].cmp(&text);
            if let Err(position) = sorted.binary_search_by(search) {
                sorted.insert(position, as_added.len());
                as_added.push(text);
            }
        }
        self.as_added = as_added.into_boxed_slice();
        self.sorted = sorted.into_boxed_slice();
    }

    fn sorted(&self) -> impl ExactSizeIterator<Item = &String> {
        self.sorted.iter().map(|&index| &self.as_added[index])
    }
}

impl PartialEq for DistinctTexts {
    fn eq(&self, other: &Self) -> bool {
        self.sorted().eq(other.sorted())
    }
}

impl Eq for DistinctTexts {}

impl Hash for DistinctTexts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Otherwise, the last scope could not be told from the first resource.
        state.write_usize(self.as_added.len());
        self.sorted().for_each(|text| text.hash(state));
    }
}
