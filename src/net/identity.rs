//! Who a process is: cluster, role, certificate and key.
//!
//! A certificate names its holder in one URI SAN, `evenkeel://<cluster>/<role>`, where role is `ca`, `coordinator`, `node/<id>`,
//! `gateway/<name>`, `operator` or `viewer`; beside it stands the DNS SAN `<cluster>.evenkeel` for SNI. Nothing else in it is
//! believed. The private key is made where it is used and never travels: a joiner sends a signing request ([`PendingIdentity`]).
//!
//! Files in an identity's directory, each 0600 and replaced atomically: `identity.crt`, `identity.key`, `ca.crt`.

use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::core::ids::{ClusterId, NodeId};

const SCHEME: &str = "evenkeel://";
const CERT_FILE: &str = "identity.crt";
const KEY_FILE: &str = "identity.key";
pub(super) const CA_CERT_FILE: &str = "ca.crt";
/// No file of an identity is anywhere near it.
const PEM_BYTES_MAX: u64 = 64 << 10;
/// A DNS label's length, so that a gateway's name fits wherever a host name does.
const NAME_BYTES_MAX: usize = 63;

/// What a certificate's holder may do, without its name: what tokens and policies speak of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleKind {
    /// Holds the cluster map.
    Coordinator,
    /// Holds disks.
    Node,
    /// Serves volumes to VMs.
    Gateway,
    /// May change anything through the admin API.
    Operator,
    /// May read anything through the admin API.
    Viewer,
}

impl fmt::Display for RoleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RoleKind::Coordinator => "coordinator",
            RoleKind::Node => "node",
            RoleKind::Gateway => "gateway",
            RoleKind::Operator => "operator",
            RoleKind::Viewer => "viewer",
        })
    }
}

/// What a certificate's holder is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// A coordinator.
    Coordinator,
    /// This node.
    Node(NodeId),
    /// The gateway of this name.
    Gateway(String),
    /// An operator's tool.
    Operator,
    /// A reader's tool.
    Viewer,
}

impl Role {
    /// The role without its name.
    pub fn kind(&self) -> RoleKind {
        match self {
            Role::Coordinator => RoleKind::Coordinator,
            Role::Node(_) => RoleKind::Node,
            Role::Gateway(_) => RoleKind::Gateway,
            Role::Operator => RoleKind::Operator,
            Role::Viewer => RoleKind::Viewer,
        }
    }

    fn parse(path: &str) -> Option<Role> {
        Some(match path.split_once('/') {
            None if path == "coordinator" => Role::Coordinator,
            None if path == "operator" => Role::Operator,
            None if path == "viewer" => Role::Viewer,
            Some(("node", id)) => Role::Node(NodeId(id.parse().ok().filter(|id| *id != 0)?)),
            Some(("gateway", name)) if is_gateway_name(name) => Role::Gateway(name.to_owned()),
            _ => return None,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Node(id) => write!(f, "node/{}", id.0),
            Role::Gateway(name) => write!(f, "gateway/{name}"),
            other => other.kind().fmt(f),
        }
    }
}

/// Whether a gateway may have this name: 1–63 letters, digits, `.`, `_`, `-`.
pub fn is_gateway_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A certificate's holder.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PeerIdentity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its role there.
    pub role: Role,
}

impl PeerIdentity {
    /// The URI SAN.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.cluster, self.role)
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of cluster {}", self.role, self.cluster)
    }
}

/// A certificate that names no holder of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateMalformed {
    /// Not X.509.
    #[error("the certificate is damaged")]
    NotX509,
    /// Without exactly one `evenkeel://` URI, or with one that names no role.
    #[error("the certificate names no role in an Evenkeel cluster")]
    NoRole,
}

/// What a certificate says of its holder. **Believe it only after its signature was verified.**
///
/// # Errors
/// The certificate is damaged, or not one of ours.
pub fn holder_of(cert: &CertificateDer<'_>) -> Result<PeerIdentity, CertificateMalformed> {
    let (cluster, path) = cluster_uri_of(cert)?;
    let role = Role::parse(&path).ok_or(CertificateMalformed::NoRole)?;
    Ok(PeerIdentity { cluster, role })
}

/// The cluster whose CA certificate this is.
///
/// # Errors
/// The certificate is damaged, or not a cluster CA's.
pub fn cluster_of_ca(cert: &CertificateDer<'_>) -> Result<ClusterId, CertificateMalformed> {
    match cluster_uri_of(cert)? {
        (cluster, path) if path == "ca" => Ok(cluster),
        _ => Err(CertificateMalformed::NoRole),
    }
}

fn cluster_uri_of(cert: &CertificateDer<'_>) -> Result<(ClusterId, String), CertificateMalformed> {
    let (_, cert) = X509Certificate::from_der(cert).map_err(|_| CertificateMalformed::NotX509)?;
    let san = cert.subject_alternative_name().map_err(|_| CertificateMalformed::NotX509)?;
    let san = san.ok_or(CertificateMalformed::NoRole)?;
    let mut uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return Err(CertificateMalformed::NoRole) };
    let (cluster, path) = uri.split_once('/').ok_or(CertificateMalformed::NoRole)?;
    Ok((cluster.parse().map_err(|_| CertificateMalformed::NoRole)?, path.to_owned()))
}

pub(super) fn ca_uri(cluster: ClusterId) -> String {
    format!("{SCHEME}{cluster}/ca")
}

/// The name that a dialer asks for (SNI): it tells a listener nothing that it could believe.
pub fn server_name(cluster: ClusterId) -> String {
    format!("{cluster}.evenkeel")
}

/// A CA certificate's fingerprint: BLAKE3 of its DER; join tokens carry it.
pub fn fingerprint_of(cert: &CertificateDer<'_>) -> [u8; 32] {
    *blake3::hash(cert).as_bytes()
}

/// Why an identity can't be had from its files, or from an issuer's answer.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such file: the process hasn't joined.
    #[error("{path} is missing: this process has not joined a cluster yet, or its directory is the wrong one")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's content is not what it should be.
    #[error("{what} is damaged: {problem}; restore it, or join again with a new token")]
    Damaged {
        /// The file, or the part.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// The identity belongs to another cluster than it should.
    #[error("this identity belongs to cluster {found}, not to {expected}")]
    OtherCluster {
        /// Whose it is.
        found: ClusterId,
        /// Whose it should be.
        expected: ClusterId,
    },
    /// The certificate has run out.
    #[error("the certificate of {who} expired {ago_seconds} s ago: join again with a new token")]
    Expired {
        /// The holder.
        who: PeerIdentity,
        /// Since when.
        ago_seconds: u64,
    },
    /// A key couldn't be made or used.
    #[error("the key can't be used: {0}")]
    Key(#[from] rcgen::Error),
}

/// Where an identity's parts are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Certificate.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// The cluster CA's certificate.
    pub ca: PathBuf,
}

impl IdentityFiles {
    /// As a daemon keeps them in its directory.
    pub fn of_daemon(dir: &Path) -> IdentityFiles {
        IdentityFiles { cert: dir.join(CERT_FILE), key: dir.join(KEY_FILE), ca: dir.join(CA_CERT_FILE) }
    }

    /// Under the names that other programs' configurations speak of.
    pub fn of_client(dir: &Path) -> IdentityFiles {
        IdentityFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem"), ca: dir.join("ca.pem") }
    }

    /// Whose certificate there is; none: no certificate.
    ///
    /// # Errors
    /// It can't be read, or is not one of a cluster's.
    pub fn holder(&self) -> Result<Option<PeerIdentity>, IdentityError> {
        let pem = match read_pem_file(&self.cert) {
            Err(IdentityError::Missing { .. }) => return Ok(None),
            other => other?,
        };
        let what = self.cert.display().to_string();
        holder_of(&parse_cert_pem(&what, &pem)?).map(Some).map_err(|e| damaged(&what, &e.to_string()))
    }
}

/// A process's certificate, key and cluster CA.
pub struct Identity {
    holder: PeerIdentity,
    cert: CertificateDer<'static>,
    ca: CertificateDer<'static>,
    key: KeyPair,
    not_after_unix_seconds: u64,
    ca_not_after_unix_seconds: u64,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, key hidden)", self.holder)
    }
}

impl Identity {
    /// Loads the identity in `dir`. `cluster` is the one that it must belong to, if that is known.
    ///
    /// # Errors
    /// A file is missing, unreadable or damaged; the identity is another cluster's, or has expired.
    pub fn load(dir: &Path, cluster: Option<ClusterId>, now_unix_seconds: u64) -> Result<Identity, IdentityError> {
        Identity::load_from(&IdentityFiles::of_daemon(dir), cluster, now_unix_seconds)
    }

    /// Loads the identity in these files.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load_from(
        files: &IdentityFiles,
        cluster: Option<ClusterId>,
        now_unix_seconds: u64,
    ) -> Result<Identity, IdentityError> {
        let cert_pem = read_pem_file(&files.cert)?;
        let key_pem = read_pem_file(&files.key)?;
        let ca_pem = read_pem_file(&files.ca)?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(&key_pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|e| damaged(&files.key.display().to_string(), &e.to_string()))?;
        let cert = parse_cert_pem(&files.cert.display().to_string(), &cert_pem)?;
        let ca = parse_cert_pem(&files.ca.display().to_string(), &ca_pem)?;
        let identity = Identity::assemble(cert, ca, key)?;
        if let Some(expected) = cluster.filter(|c| *c != identity.holder.cluster) {
            return Err(IdentityError::OtherCluster { found: identity.holder.cluster, expected });
        }
        if now_unix_seconds > identity.not_after_unix_seconds {
            let ago_seconds = now_unix_seconds - identity.not_after_unix_seconds;
            return Err(IdentityError::Expired { who: identity.holder, ago_seconds });
        }
        Ok(identity)
    }

    /// Writes the identity into `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        make_private_dir(dir)?;
        let files = IdentityFiles::of_daemon(dir);
        write_private_file(&files.key, &self.key.serialize_pem())?;
        write_private_file(&files.ca, &cert_pem(&self.ca))?;
        write_private_file(&files.cert, &cert_pem(&self.cert))
    }

    /// Writes the identity into a client's files. The certificate comes first: it tells who the rest belongs to, should the
    /// writing be cut short, and it can be had again at any time.
    ///
    /// # Errors
    /// A file can't be written.
    pub fn save_for_client(&self, files: &IdentityFiles) -> Result<(), IdentityError> {
        write_private_file(&files.cert, &cert_pem(&self.cert))?;
        write_private_file(&files.ca, &cert_pem(&self.ca))?;
        write_private_file(&files.key, &self.key.serialize_pem())
    }

    /// Who this is.
    pub fn holder(&self) -> &PeerIdentity {
        &self.holder
    }

    /// When the certificate runs out; renew it well before.
    pub fn not_after_unix_seconds(&self) -> u64 {
        self.not_after_unix_seconds
    }

    /// When the cluster's CA runs out, Unix seconds.
    pub fn ca_not_after_unix_seconds(&self) -> u64 {
        self.ca_not_after_unix_seconds
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// What is shown to peers: the certificate, then the CA's, so that a joiner can pin the latter by its fingerprint.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.cert.clone(), self.ca.clone()]
    }

    pub(super) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    fn assemble(
        cert: CertificateDer<'static>,
        ca: CertificateDer<'static>,
        key: KeyPair,
    ) -> Result<Identity, IdentityError> {
        let holder = holder_of(&cert).map_err(|e| damaged("the certificate", &e.to_string()))?;
        let ca_cluster = cluster_of_ca(&ca).map_err(|e| damaged("the CA's certificate", &e.to_string()))?;
        if holder.cluster != ca_cluster {
            return Err(IdentityError::OtherCluster { found: holder.cluster, expected: ca_cluster });
        }
        let parse = |der| X509Certificate::from_der(der).map(|(_, c)| c);
        let (Ok(leaf), Ok(root)) = (parse(&cert), parse(&ca)) else {
            return Err(damaged("the certificate", "not X.509"));
        };
        if leaf.verify_signature(Some(root.public_key())).is_err() {
            return Err(damaged("the certificate", "the cluster's CA has not signed it"));
        }
        if leaf.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err(damaged("the key", "the certificate belongs to another key"));
        }
        let end = |cert: &X509Certificate<'_>| u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        let (not_after_unix_seconds, ca_not_after_unix_seconds) = (end(&leaf), end(&root));
        Ok(Identity { holder, cert, ca, key, not_after_unix_seconds, ca_not_after_unix_seconds })
    }
}

/// A key that waits for its certificate.
pub struct PendingIdentity {
    key: KeyPair,
    request_pem: String,
}

impl PendingIdentity {
    /// Makes a key and a signing request for it.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<PendingIdentity, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let request_pem = CertificateParams::default().serialize_request(&key)?.pem()?;
        Ok(PendingIdentity { key, request_pem })
    }

    /// The signing request, for the CA. It names nobody: the CA alone decides who the holder is.
    pub fn request_pem(&self) -> &str {
        &self.request_pem
    }

    /// Completes the identity with the CA's answer. If `ca_fingerprint` is given (it is in a join token), the CA must match it.
    ///
    /// # Errors
    /// The answer is damaged, for another key, or of another CA.
    pub fn complete(
        self,
        cert_pem: &str,
        ca_pem: &str,
        ca_fingerprint: Option<[u8; 32]>,
    ) -> Result<Identity, IdentityError> {
        let cert = parse_cert_pem("the certificate", cert_pem)?;
        let ca = parse_cert_pem("the CA's certificate", ca_pem)?;
        if ca_fingerprint.is_some_and(|f| f != fingerprint_of(&ca)) {
            return Err(damaged("the CA's certificate", "it is not the one that the token names"));
        }
        Identity::assemble(cert, ca, self.key)
    }
}

fn damaged(what: &str, problem: &str) -> IdentityError {
    IdentityError::Damaged { what: what.to_owned(), problem: problem.to_owned() }
}

pub(super) fn parse_cert_pem(what: &str, pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(what, &format!("not a PEM certificate ({e:?})")))
}

/// A certificate as PEM.
pub fn cert_pem(cert: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(cert);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|b| char::from(*b)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

pub(super) fn read_pem_file(path: &Path) -> Result<String, IdentityError> {
    let io_error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => IdentityError::Missing { path: path.to_owned() },
        _ => IdentityError::Io { path: path.to_owned(), source },
    };
    if std::fs::metadata(path).map_err(io_error)?.len() > PEM_BYTES_MAX {
        return Err(damaged(&path.display().to_string(), "too long"));
    }
    let bytes = std::fs::read(path).map_err(io_error)?;
    String::from_utf8(bytes).map_err(|_| damaged(&path.display().to_string(), "not text"))
}

pub(super) fn make_private_dir(dir: &Path) -> Result<(), IdentityError> {
    std::fs::create_dir_all(dir).map_err(|source| IdentityError::Io { path: dir.to_owned(), source })
}

/// Writes a file of mode 0600, whole or not at all.
pub(super) fn write_private_file(path: &Path, content: &str) -> Result<(), IdentityError> {
    let io_error = |source| IdentityError::Io { path: path.to_owned(), source };
    let new = path.with_extension(format!("new.{}", std::process::id()));
    let written = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).and_then(
        |mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        },
    );
    written.and_then(|()| std::fs::rename(&new, path)).map_err(io_error)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io_error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::net::testing::{NOW, TestCluster};

    #[test]
    fn roles_round_trip_through_uris() {
        let roles = [
            Role::Coordinator,
            Role::Node(NodeId(7)),
            Role::Gateway("vm-host_1.example".into()),
            Role::Operator,
            Role::Viewer,
        ];
        for role in roles {
            assert_eq!(Role::parse(&role.to_string()), Some(role));
        }
        for bad in ["", "ca", "node", "node/", "node/0", "node/x", "gateway/", "gateway/a b", "operator/x", "root"] {
            assert_eq!(Role::parse(bad), None, "{bad}");
        }
        assert_eq!(Role::parse(&format!("gateway/{}", "x".repeat(64))), None);
    }

    #[test]
    fn an_identity_survives_its_directory() {
        let cluster = TestCluster::new(1);
        let dir = tempfile::tempdir().unwrap();
        let id = cluster.identity(Role::Node(NodeId(7)));
        id.save(dir.path()).unwrap();
        for file in [CERT_FILE, KEY_FILE, CA_CERT_FILE] {
            assert_eq!(std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let back = Identity::load(dir.path(), Some(cluster.id), NOW).unwrap();
        assert_eq!(back.holder(), &PeerIdentity { cluster: cluster.id, role: Role::Node(NodeId(7)) });
        assert_eq!(back.chain(), id.chain());
    }

    #[test]
    fn load_says_what_is_wrong() {
        let cluster = TestCluster::new(1);
        let dir = tempfile::tempdir().unwrap();
        let load = |now| Identity::load(dir.path(), Some(cluster.id), now);
        assert!(matches!(load(NOW), Err(IdentityError::Missing { path }) if path.ends_with(CERT_FILE)));

        let id = cluster.identity(Role::Node(NodeId(7)));
        id.save(dir.path()).unwrap();
        let late = id.not_after_unix_seconds() + 5;
        assert!(matches!(load(late), Err(IdentityError::Expired { ago_seconds: 5, .. })));

        let other = TestCluster::new(2);
        let found = other.id;
        other.identity(Role::Node(NodeId(7))).save(dir.path()).unwrap();
        assert!(matches!(load(NOW), Err(IdentityError::OtherCluster { found: f, .. }) if f == found));

        id.save(dir.path()).unwrap();
        write_private_file(&dir.path().join(CA_CERT_FILE), &cert_pem(&other.ca.cert())).unwrap();
        assert!(matches!(load(NOW), Err(IdentityError::OtherCluster { .. })));

        for file in [CERT_FILE, KEY_FILE, CA_CERT_FILE] {
            for content in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
                id.save(dir.path()).unwrap();
                write_private_file(&dir.path().join(file), content).unwrap();
                assert!(matches!(load(NOW), Err(IdentityError::Damaged { .. })), "{file} {content:?}");
            }
            id.save(dir.path()).unwrap();
            std::fs::write(dir.path().join(file), vec![0xff; 100]).unwrap();
            assert!(matches!(load(NOW), Err(IdentityError::Damaged { .. })), "{file}");
        }

        id.save(dir.path()).unwrap();
        let another_key = PendingIdentity::generate().unwrap().key.serialize_pem();
        write_private_file(&dir.path().join(KEY_FILE), &another_key).unwrap();
        assert!(matches!(load(NOW), Err(IdentityError::Damaged { what, .. }) if what == "the key"));
    }

    #[test]
    fn an_answer_for_another_key_or_of_another_ca_is_refused() {
        let cluster = TestCluster::new(1);
        let ca_pem = cert_pem(&cluster.ca.cert());
        let ask = || PendingIdentity::generate().unwrap();
        let issue = |request: &str| cluster.ca.issue(request, &Role::Operator, NOW).unwrap();

        let wrong_key = issue(ask().request_pem());
        assert!(matches!(ask().complete(&wrong_key, &ca_pem, None), Err(IdentityError::Damaged { .. })));
        let pending = ask();
        let cert = issue(pending.request_pem());
        assert!(matches!(pending.complete(&cert, &ca_pem, Some([0; 32])), Err(IdentityError::Damaged { .. })));
        let pending = ask();
        let cert = issue(pending.request_pem());
        assert!(pending.complete(&cert, &ca_pem, Some(cluster.ca.fingerprint())).is_ok());
    }
}
