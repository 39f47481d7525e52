//! From certificates to identities: the verifiers, and the rustls configurations made of them.
//!
//! A peer is believed when the cluster's CA has signed its certificate, the certificate is in its time, and it names a role that is
//! accepted here. The check of the cluster's name comes first, so that the commonest mistake (two clusters on one network) gets the clearest error.
//!
//! TLS 1.3 alone for QUIC; the admin listener takes 1.2 too, for old HTTP clients. No session tickets and no 0-RTT: each connection
//! proves its identity.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::identity::{self, Identity, PeerIdentity, RoleKind};
use crate::core::ids::{ClusterId, NodeId};

/// What QUIC peers agree to speak.
pub const ALPN: &[u8] = b"evenkeel/1";

/// Whom a dialer wants to reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Any coordinator.
    Coordinator,
    /// This node and no other.
    Node(NodeId),
    /// Any node.
    AnyNode,
}

impl Expect {
    fn admits(self, peer: &PeerIdentity) -> bool {
        match (self, &peer.role) {
            (Expect::Coordinator, identity::Role::Coordinator) => true,
            (Expect::Node(id), identity::Role::Node(found)) => id == *found,
            (Expect::AnyNode, identity::Role::Node(_)) => true,
            _ => false,
        }
    }
}

impl std::fmt::Display for Expect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Expect::Coordinator => f.write_str("a coordinator"),
            Expect::Node(id) => write!(f, "node {id}"),
            Expect::AnyNode => f.write_str("a node"),
        }
    }
}

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityRefused {
    /// It is not one of ours at all.
    #[error("the peer shows no Evenkeel certificate: {0}")]
    NotOurs(#[from] identity::CertificateMalformed),
    /// Two clusters met.
    #[error("the peer belongs to cluster {found}, this is cluster {ours}")]
    OtherCluster {
        /// Whose it says it is.
        found: ClusterId,
        /// Ours.
        ours: ClusterId,
    },
    /// It names our cluster, but our CA has not signed it.
    #[error("the peer names this cluster, but the cluster's CA has not signed its certificate")]
    NotSigned,
    /// Out of its time.
    #[error("the certificate of {who} has expired or is not valid yet: renew it, and check both clocks")]
    OutOfTime {
        /// As it says.
        who: String,
    },
    /// A server that isn't the one that was asked for.
    #[error("the peer is {found}, but {expected} was expected at that address")]
    Unexpected {
        /// Who it is.
        found: String,
        /// Whom the dialer wanted.
        expected: String,
    },
    /// A client whose role may not come in here.
    #[error("a {0} may not open links to this process")]
    RoleNotAccepted(RoleKind),
}

/// The roles whose links a process of role `own` accepts.
pub fn roles_accepted_by(own: RoleKind) -> &'static [RoleKind] {
    match own {
        RoleKind::Coordinator => {
            &[RoleKind::Coordinator, RoleKind::Node, RoleKind::Gateway, RoleKind::Operator, RoleKind::Viewer]
        }
        RoleKind::Node => &[RoleKind::Coordinator, RoleKind::Node, RoleKind::Gateway, RoleKind::Operator],
        // They only dial.
        RoleKind::Gateway | RoleKind::Operator | RoleKind::Viewer => &[],
    }
}

/// ring, with AES-128 first: the cheapest on every machine with AES instructions, and as strong as P-256.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|s| match s.suite() {
        rustls::CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        rustls::CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        _ => 3,
    });
    Arc::new(provider)
}

/// Where a dialer finds why it refused its peer: TLS itself hands on an alert only.
pub type RefusalSlot = Arc<Mutex<Option<IdentityRefused>>>;

fn refuse(refusal: IdentityRefused) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
}

/// First of all checks, before the signature: its outcome is believed only together with the others.
fn cluster_check(cert: &CertificateDer<'_>, ours: ClusterId) -> Result<PeerIdentity, IdentityRefused> {
    let peer = identity::holder_of(cert)?;
    if peer.cluster != ours {
        return Err(IdentityRefused::OtherCluster { found: peer.cluster, ours });
    }
    Ok(peer)
}

fn signature_refusal(error: &Error, peer: &PeerIdentity) -> IdentityRefused {
    match error {
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => IdentityRefused::OutOfTime { who: peer.to_string() },
        _ => IdentityRefused::NotSigned,
    }
}

/// Verifies the server that a dialer reached.
#[derive(Debug)]
struct ServerVerifier {
    cluster: ClusterId,
    expect: Expect,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    refusal: RefusalSlot,
}

impl ServerVerifier {
    fn verify(
        &self,
        cert: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), IdentityRefused> {
        let peer = cluster_check(cert, self.cluster)?;
        ParsedCertificate::try_from(cert)
            .and_then(|parsed| {
                rustls::client::verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &self.roots,
                    chain,
                    now,
                    self.algorithms.all,
                )
            })
            .map_err(|e| signature_refusal(&e, &peer))?;
        if !self.expect.admits(&peer) {
            let (found, expected) = (peer.role.to_string(), self.expect.to_string());
            return Err(IdentityRefused::Unexpected { found, expected });
        }
        Ok(())
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now).map_err(|refusal| {
            *self.refusal.lock() = Some(refusal.clone());
            refuse(refusal)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies those who dial us.
#[derive(Debug)]
struct ClientVerifier {
    cluster: ClusterId,
    roles: &'static [RoleKind],
    webpki: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client of another cluster then still shows its certificate, and gets a clear refusal.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let peer = cluster_check(end_entity, self.cluster).map_err(refuse)?;
        self.webpki
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|e| refuse(signature_refusal(&e, &peer)))?;
        if !self.roles.contains(&peer.role.kind()) {
            return Err(refuse(IdentityRefused::RoleNotAccepted(peer.role.kind())));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Why a TLS configuration can't be made of an identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// The identity's parts don't make a configuration.
    #[error("the identity can't be used for TLS: {0}")]
    Tls(#[from] Error),
    /// The CA makes no verifier.
    #[error("the cluster's CA can't be used for TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// No cipher suite that QUIC needs.
    #[error("this build has no cipher suite for QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

fn roots_of(identity: &Identity) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca().clone())?;
    Ok(roots)
}

fn server_verifier(
    identity: &Identity,
    expect: Expect,
    refusal: RefusalSlot,
) -> Result<Arc<ServerVerifier>, TlsConfigError> {
    Ok(Arc::new(ServerVerifier {
        cluster: identity.holder().cluster,
        expect,
        roots: roots_of(identity)?,
        algorithms: provider().signature_verification_algorithms,
        refusal,
    }))
}

/// For a QUIC dialer.
///
/// # Errors
/// The identity's parts don't make a configuration.
pub fn quic_client(
    identity: &Identity,
    expect: Expect,
    refusal: RefusalSlot,
) -> Result<quinn::crypto::rustls::QuicClientConfig, TlsConfigError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(identity, expect, refusal)?)
        .with_client_auth_cert(identity.chain(), identity.key_der())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    Ok(config.try_into()?)
}

/// For a QUIC listener.
///
/// # Errors
/// The identity's parts don't make a configuration.
pub fn quic_server(identity: &Identity) -> Result<quinn::crypto::rustls::QuicServerConfig, TlsConfigError> {
    let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots_of(identity)?), provider()).build()?;
    let roles = roles_accepted_by(identity.holder().role.kind());
    let verifier = Arc::new(ClientVerifier { cluster: identity.holder().cluster, roles, webpki });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key_der())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config.try_into()?)
}

/// For the admin listener: a client may show a certificate of the cluster, of any role; without one it needs a token.
///
/// # Errors
/// The identity's parts don't make a configuration.
pub fn admin_server(identity: &Identity) -> Result<ServerConfig, TlsConfigError> {
    let webpki = WebPkiClientVerifier::builder_with_provider(Arc::new(roots_of(identity)?), provider())
        .allow_unauthenticated()
        .build()?;
    let roles = roles_accepted_by(RoleKind::Coordinator);
    let verifier = Arc::new(ClientVerifier { cluster: identity.holder().cluster, roles, webpki });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key_der())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// For a client of the admin API that has an identity.
///
/// # Errors
/// The identity's parts don't make a configuration.
pub fn admin_client(identity: &Identity, expect: Expect) -> Result<ClientConfig, TlsConfigError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(identity, expect, RefusalSlot::default())?)
        .with_client_auth_cert(identity.chain(), identity.key_der())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// For a joiner, which has only a token: the server must be a coordinator whose chain holds the CA of this fingerprint.
///
/// # Errors
/// rustls refuses its own defaults.
pub fn joining_client(ca_fingerprint: [u8; 32]) -> Result<ClientConfig, TlsConfigError> {
    let algorithms = provider().signature_verification_algorithms;
    let verifier = Arc::new(PinnedVerifier { ca_fingerprint, algorithms });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts the one CA that a join token names, once the server has shown it.
#[derive(Debug)]
struct PinnedVerifier {
    ca_fingerprint: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|c| identity::fingerprint_of(c) == self.ca_fingerprint);
        let ca = ca.ok_or_else(|| refuse(IdentityRefused::NotSigned))?;
        let cluster = identity::cluster_of_ca(ca).map_err(|e| refuse(e.into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let (algorithms, refusal) = (self.algorithms, RefusalSlot::default());
        ServerVerifier { cluster, expect: Expect::Coordinator, roots, algorithms, refusal }.verify_server_cert(
            end_entity,
            intermediates,
            name,
            ocsp,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Trusts the cluster of `trusted`, but shows the certificate of `shown`: a dialer of another cluster that skips its own check.
#[cfg(test)]
pub(super) fn quic_client_showing(
    shown: &Identity,
    trusted: &Identity,
) -> Result<quinn::crypto::rustls::QuicClientConfig, TlsConfigError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(trusted, Expect::AnyNode, RefusalSlot::default())?)
        .with_client_auth_cert(shown.chain(), shown.key_der())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config.try_into()?)
}
