use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use http::{Request, Response};
use hyper::body::Incoming;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    },
};
use tower_service::Service;

use crate::{Api, AuthServer, Body, BoxError, Server};

/// A [`Server`] with TLS, and the certificate that clients have to trust. Needs the feature `tls`.
///
/// [`AuthServer::serve_tls`] and [`Api::serve_tls`] start one. Each server has a new certification
/// authority, which is only in memory. Its certificate is valid for `localhost`, `127.0.0.1` and
/// `::1`.
#[derive(Debug)]
pub struct TlsServer {
    server: Server,
    certificate: rcgen::Certificate,
}

impl TlsServer {
    /// Serves any service on a free port of the loopback interface, for HTTP/1.1 and HTTP/2 with
    /// TLS.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no port, or no random numbers.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    pub async fn start<S>(service: S) -> io::Result<Self>
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let Identity { config, authority } = identity().map_err(io::Error::other)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let accept = move |socket| acceptor.accept(socket);
        Ok(Self {
            server: Server::start_with("https", address, service, accept).await?,
            certificate: authority,
        })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Returns the URL of a path, such as `/token`.
    pub fn url(&self, path: &str) -> String {
        self.server.url(path)
    }

    /// See [`Server::stop`].
    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Returns the certificate of the certification authority in PEM.
    pub fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// Returns the certificate of the certification authority in DER.
    pub fn certificate_der(&self) -> &[u8] {
        self.certificate.der()
    }
}

impl AuthServer {
    /// Like [`serve`](Self::serve), with TLS. Needs the feature `tls`.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no port, or no random numbers.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    pub async fn serve_tls(&self) -> io::Result<TlsServer> {
        TlsServer::start(self.clone()).await
    }
}

impl Api {
    /// Like [`serve`](Self::serve), with TLS. Needs the feature `tls`.
    ///
    /// # Errors
    ///
    /// Fails if the operating system provides no port, or no random numbers.
    ///
    /// # Panics
    ///
    /// Panics outside of a Tokio runtime.
    pub async fn serve_tls(&self) -> io::Result<TlsServer> {
        TlsServer::start(self.clone()).await
    }
}

/// What a server needs for TLS, and the authority that signed its certificate.
struct Identity {
    config: ServerConfig,
    authority: rcgen::Certificate,
}

fn identity() -> Result<Identity, BoxError> {
    let mut authority = CertificateParams::new([])?;
    let names = &mut authority.distinguished_name;
    names.push(DnType::CommonName, "tower-client-credentials-test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    let authority_certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;

    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let chain: Vec<CertificateDer<'static>> = vec![certificate.into()];
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Identity {
        config,
        authority: authority_certificate,
    })
}
