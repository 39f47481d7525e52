//! The cluster's certificate authority: made once at `init`, held by the coordinator.
//!
//! ECDSA P-256. Files, each 0600: `ca.crt`, `ca.key`. A request contributes its public key and nothing else: who the holder is, how
//! long, and what for is the caller's decision. Times are Unix seconds, passed in.
//!
//! Non-goals: revocation lists (the coordinator refuses removed members by name; gateways' certificates last a day).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{self, CA_CERT_FILE, IdentityError, PeerIdentity, Role, RoleKind};
use crate::core::ids::ClusterId;

const CA_KEY_FILE: &str = "ca.key";
/// The CA outlives the hardware; it can't be renewed without touching every member.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Nodes and coordinators renew long before; a node that was off for months still comes back.
const MEMBER_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// Gateways and people: short, because there is no revocation.
const CLIENT_LIFETIME: Duration = Duration::from_secs(86_400);
/// How far a peer's clock may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
/// A P-256 request has about 400 bytes.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Why the CA can't be had or didn't sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a CA already; a second one would lock every member out.
    #[error("{0} holds a cluster CA already")]
    Exists(std::path::PathBuf),
    /// A file is missing, damaged, or can't be written.
    #[error(transparent)]
    Files(#[from] IdentityError),
    /// The request is no signing request for a P-256 key with a valid signature.
    #[error("the signing request is malformed: {0}")]
    Request(String),
    /// The gateway's name is no name.
    #[error("{0:?} is not a gateway's name: use 1–63 letters, digits, '.', '_' or '-'")]
    GatewayName(String),
    /// The signature couldn't be made.
    #[error("the certificate can't be made: {0}")]
    Sign(#[from] rcgen::Error),
}

/// The cluster's CA.
pub struct ClusterCa {
    cluster: ClusterId,
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterCa({}, key hidden)", self.cluster)
    }
}

/// How long a certificate of this role lasts.
pub fn lifetime_of(role: RoleKind) -> Duration {
    match role {
        RoleKind::Coordinator | RoleKind::Node => MEMBER_LIFETIME,
        RoleKind::Gateway | RoleKind::Operator | RoleKind::Viewer => CLIENT_LIFETIME,
    }
}

impl ClusterCa {
    /// Makes a new cluster's CA.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn create(cluster: ClusterId, now_unix_seconds: u64) -> Result<ClusterCa, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&format!("Evenkeel cluster {cluster}"), &identity::ca_uri(cluster), cluster)?;
        set_validity(&mut params, now_unix_seconds, CA_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?.der().clone();
        Ok(ClusterCa { cluster, cert, issuer: Issuer::new(params, key) })
    }

    /// Loads the CA in `dir`.
    ///
    /// # Errors
    /// A file is missing or damaged, or the two don't belong together.
    pub fn load(dir: &Path) -> Result<ClusterCa, CaError> {
        let damaged = |file: &str, problem: String| {
            CaError::Files(IdentityError::Damaged { what: dir.join(file).display().to_string(), problem })
        };
        let cert_pem = identity::read_pem_file(&dir.join(CA_CERT_FILE))?;
        let cert = identity::parse_cert_pem(&dir.join(CA_CERT_FILE).display().to_string(), &cert_pem)?;
        let cluster = identity::cluster_of_ca(&cert).map_err(|e| damaged(CA_CERT_FILE, e.to_string()))?;
        let key_pem = identity::read_pem_file(&dir.join(CA_KEY_FILE))?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(&key_pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|e| damaged(CA_KEY_FILE, e.to_string()))?;
        let (_, parsed) =
            X509Certificate::from_der(&cert).map_err(|_| damaged(CA_CERT_FILE, "it is not X.509".to_owned()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(damaged(CA_KEY_FILE, format!("{CA_CERT_FILE} belongs to another key")));
        }
        let issuer = Issuer::from_ca_cert_der(&cert, key)?;
        Ok(ClusterCa { cluster, issuer, cert })
    }

    /// Writes the CA into `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// There is one already, or a file can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), CaError> {
        if dir.join(CA_KEY_FILE).exists() {
            return Err(CaError::Exists(dir.to_owned()));
        }
        identity::make_private_dir(dir)?;
        identity::write_private_file(&dir.join(CA_CERT_FILE), &identity::cert_pem(&self.cert))?;
        identity::write_private_file(&dir.join(CA_KEY_FILE), &self.issuer.key().serialize_pem())?;
        Ok(())
    }

    /// Whose CA this is.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate.
    pub fn cert(&self) -> CertificateDer<'static> {
        self.cert.clone()
    }

    /// What join tokens carry.
    pub fn fingerprint(&self) -> [u8; 32] {
        identity::fingerprint_of(&self.cert)
    }

    /// Signs a certificate (PEM) for the request's key, in this role, for the role's lifetime.
    ///
    /// # Errors
    /// The request is malformed, or the role has an impossible name.
    pub fn issue(&self, request_pem: &str, role: &Role, now_unix_seconds: u64) -> Result<String, CaError> {
        if let Role::Gateway(name) = role
            && !identity::is_gateway_name(name)
        {
            return Err(CaError::GatewayName(name.clone()));
        }
        if request_pem.len() > REQUEST_BYTES_MAX {
            return Err(CaError::Request(format!("longer than {REQUEST_BYTES_MAX} bytes")));
        }
        let request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(|e| CaError::Request(e.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::Request("the key is not ECDSA P-256".to_owned()));
        }
        let holder = PeerIdentity { cluster: self.cluster, role: role.clone() };
        let mut params = params(&role.to_string(), &holder.uri(), self.cluster)?;
        set_validity(&mut params, now_unix_seconds, lifetime_of(role.kind()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role.kind() {
            // A gateway serves its /metrics; who dials a coordinator or a node asks for that role besides.
            RoleKind::Coordinator | RoleKind::Node | RoleKind::Gateway => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            RoleKind::Operator | RoleKind::Viewer => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        Ok(params.signed_by(&request.public_key, &self.issuer)?.pem())
    }
}

fn params(common_name: &str, uri: &str, cluster: ClusterId) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.subject_alt_names =
        vec![SanType::URI(uri.try_into()?), SanType::DnsName(identity::server_name(cluster).try_into()?)];
    let mut serial = rand::random::<[u8; 16]>();
    serial[0] = serial[0] & 0x7f | 0x40; // A positive integer of full length, whatever the rest is.
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, now_unix_seconds: u64, lifetime: Duration) {
    // Bounded to the years that X.509 can write, so that an absurd clock can't panic.
    let now = Duration::from_secs(now_unix_seconds.clamp(CLOCK_SKEW.as_secs(), 200_000_000_000));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + (now - CLOCK_SKEW);
    params.not_after = epoch + (now + lifetime);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::NodeId;
    use crate::net::identity::{PendingIdentity, holder_of};
    use crate::net::testing::{NOW, TestCluster};

    #[test]
    fn a_ca_survives_its_directory_and_still_signs() {
        let ca = TestCluster::new(1).ca;
        let dir = tempfile::tempdir().unwrap();
        ca.save(dir.path()).unwrap();
        assert!(matches!(ca.save(dir.path()), Err(CaError::Exists(_))));
        let back = ClusterCa::load(dir.path()).unwrap();
        assert_eq!((back.cluster(), back.fingerprint()), (ca.cluster(), ca.fingerprint()));
        let pending = PendingIdentity::generate().unwrap();
        let cert = back.issue(pending.request_pem(), &Role::Node(NodeId(3)), NOW).unwrap();
        let id = pending.complete(&cert, &identity::cert_pem(&ca.cert()), Some(ca.fingerprint())).unwrap();
        assert_eq!(id.holder().role, Role::Node(NodeId(3)));
        assert_eq!(id.not_after_unix_seconds(), NOW + MEMBER_LIFETIME.as_secs());
        assert!(holder_of(&ca.cert()).is_err(), "the CA's own certificate is nobody's identity");
    }

    #[test]
    fn load_says_what_is_wrong() {
        let (ca, other) = (TestCluster::new(1).ca, TestCluster::new(2).ca);
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ClusterCa::load(dir.path()), Err(CaError::Files(IdentityError::Missing { .. }))));
        ca.save(dir.path()).unwrap();
        identity::write_private_file(&dir.path().join(CA_CERT_FILE), &identity::cert_pem(&other.cert())).unwrap();
        assert!(matches!(ClusterCa::load(dir.path()), Err(CaError::Files(IdentityError::Damaged { .. }))));
        identity::write_private_file(&dir.path().join(CA_CERT_FILE), "x").unwrap();
        assert!(matches!(ClusterCa::load(dir.path()), Err(CaError::Files(IdentityError::Damaged { .. }))));
    }

    #[test]
    fn bad_requests_and_names_are_refused() {
        let ca = TestCluster::new(1).ca;
        let long = "x".repeat(REQUEST_BYTES_MAX + 1);
        for bad in ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", &long] {
            assert!(matches!(ca.issue(bad, &Role::Operator, NOW), Err(CaError::Request(_))));
        }
        let request = PendingIdentity::generate().unwrap();
        let gateway = Role::Gateway("a/b".into());
        assert!(matches!(ca.issue(request.request_pem(), &gateway, NOW), Err(CaError::GatewayName(_))));
        assert!(ca.issue(request.request_pem(), &Role::Operator, u64::MAX).is_ok(), "an absurd clock can't panic");
    }
}
