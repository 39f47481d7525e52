//! `certificate`: a client certificate as PEM files, for a program that reads a node's or a gateway's pages beyond loopback.
//!
//! Invariants: files that are no certificate of this cluster and role are never replaced; the key is made here and never
//! travels; what has more than half of its time left is kept, so that a timer may run this as often as it likes.

use std::path::Path;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::api::types::{CertificateRequest, JoinReply, Status};
use crate::core::ids::ClusterId;
use crate::net::identity::{Identity, IdentityFiles, PendingIdentity, server_name};

use super::Session;
use super::args::CertificateArgs;

/// What `-o json` prints.
#[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Issued {
    /// The cluster's id.
    cluster: String,
    /// `viewer` or `operator`.
    role: String,
    /// The certificate's file.
    cert: String,
    /// The private key's file.
    key: String,
    /// The file of the cluster's CA certificate.
    ca: String,
    /// The name that every daemon's certificate has: what a client checks a server against.
    server_name: String,
    /// Unix time, seconds.
    expires_unix_seconds: u64,
    /// False: the one that was there lasts long enough.
    renewed: bool,
}

/// `certificate`.
pub fn certificate(session: &Session, args: &CertificateArgs) -> anyhow::Result<()> {
    let client = session.client()?;
    let status: Status = client.get("/v1/status")?;
    let cluster: ClusterId =
        status.cluster.parse().map_err(|_| anyhow::anyhow!("the coordinator gave no cluster id"))?;
    let files = IdentityFiles::of_client(&args.out);
    may_replace(&files, cluster, &args.role)?;
    let kept = fresh(&files, cluster, now_unix_seconds());
    let renewed = kept.is_none();
    let identity = match kept {
        Some(identity) => identity,
        None => {
            // What can't be written is found before the coordinator signs.
            std::fs::create_dir_all(&args.out).with_context(|| format!("making {}", args.out.display()))?;
            let pending = PendingIdentity::generate()?;
            let csr_pem = pending.request_pem().to_owned();
            let request = CertificateRequest { role: args.role.clone(), name: args.name.clone(), csr_pem };
            let reply: JoinReply = client.post("/v1/certificates", &request)?;
            let identity = pending.complete(&reply.certificate_pem, &reply.ca_pem, None)?;
            identity.save_for_client(&files)?;
            identity
        }
    };
    let text = |path: &Path| path.display().to_string();
    let issued = Issued {
        cluster: cluster.to_string(),
        role: args.role.clone(),
        cert: text(&files.cert),
        key: text(&files.key),
        ca: text(&files.ca),
        server_name: server_name(cluster),
        expires_unix_seconds: identity.not_after_unix_seconds(),
        renewed,
    };
    session.show_one(&issued, |issued| table(issued, now_unix_seconds()))
}

/// Refuses to touch what is not a certificate of this cluster and role.
fn may_replace(files: &IdentityFiles, cluster: ClusterId, role: &str) -> anyhow::Result<()> {
    let another = "choose another directory with --out";
    let Some(holder) = files.holder().context(another)? else {
        for path in [&files.key, &files.ca] {
            if path.exists() {
                bail!(
                    "{} is there without a certificate beside it, so whose it is can't be told: {another}",
                    path.display()
                );
            }
        }
        return Ok(());
    };
    if holder.cluster != cluster || holder.role.to_string() != role {
        bail!("{} belongs to {holder}, not to a {role} of cluster {cluster}: {another}", files.cert.display());
    }
    Ok(())
}

/// The identity in the files, if it is whole and has more than half of its time left.
fn fresh(files: &IdentityFiles, cluster: ClusterId, now_unix_seconds: u64) -> Option<Identity> {
    let identity = Identity::load_from(files, Some(cluster), now_unix_seconds).ok()?;
    let lifetime = crate::net::ca::lifetime_of(identity.holder().role.kind()).as_secs();
    let left = identity.not_after_unix_seconds().saturating_sub(now_unix_seconds);
    (left > lifetime / 2).then_some(identity)
}

fn table(issued: &Issued, now_unix_seconds: u64) -> String {
    let end = i64::try_from(issued.expires_unix_seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    let end = end.map_or_else(|| issued.expires_unix_seconds.to_string(), |t| t.to_string());
    let hours = issued.expires_unix_seconds.saturating_sub(now_unix_seconds).div_ceil(3600);
    let what = if issued.renewed { "new" } else { "kept" };
    format!(
        "{what}: {} of cluster {}, valid until {end} ({hours} h)\n  certificate  {}\n  key          {}\n  \
         CA           {}\n  server name  {}",
        issued.role, issued.cluster, issued.cert, issued.key, issued.ca, issued.server_name
    )
}

fn now_unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::identity::Role;
    use crate::net::testing::{NOW, TestCluster};

    #[test]
    fn a_certificate_is_kept_for_half_its_time() {
        let (cluster, dir) = (TestCluster::new(1), tempfile::tempdir().unwrap());
        let files = IdentityFiles::of_client(dir.path());
        let identity = cluster.identity(Role::Viewer);
        let end = identity.not_after_unix_seconds();
        identity.save_for_client(&files).unwrap();
        assert!(fresh(&files, cluster.id, NOW).is_some());
        assert!(fresh(&files, cluster.id, end - 43_200).is_none());
        assert!(fresh(&files, cluster.id, end + 1).is_none());
        std::fs::remove_file(&files.key).unwrap();
        assert!(fresh(&files, cluster.id, NOW).is_none(), "a writing that was cut short is done anew");
        assert!(may_replace(&files, cluster.id, "viewer").is_ok());
    }

    #[test]
    fn what_belongs_to_others_is_not_replaced() {
        let (cluster, dir) = (TestCluster::new(1), tempfile::tempdir().unwrap());
        let files = IdentityFiles::of_client(dir.path());
        let refusal = |role| may_replace(&files, cluster.id, role).map_err(|e| format!("{e:#}"));
        assert_eq!(refusal("viewer"), Ok(()));
        std::fs::write(&files.key, "a key of somebody's web server").unwrap();
        assert!(refusal("viewer").unwrap_err().contains("key.pem is there without"));
        std::fs::write(&files.cert, "its certificate").unwrap();
        assert!(refusal("viewer").unwrap_err().contains("--out"));
        cluster.identity(Role::Operator).save_for_client(&files).unwrap();
        assert!(refusal("viewer").unwrap_err().contains("belongs to operator of cluster"));
        TestCluster::new(2).identity(Role::Viewer).save_for_client(&files).unwrap();
        assert!(refusal("viewer").unwrap_err().contains("belongs to viewer of cluster"));
    }
}
