//! Evenkeel keeps virtual machines running while their disks move.
//!
//! The crate's map; imports flow one way, `main → cli → daemons → {net, disk, meta, api} → wire → core`,
//! and a test checks these arrows:
//!
//! - [`core`]: the pure state machines and data structures.
//! - [`wire`]: what travels between processes, as bytes.
//! - [`disk`]: the chunk store on a directory or block device.
//! - [`net`]: cluster identities, QUIC links and channels, the admin listener.
//! - [`meta`]: lasting metadata: records, migrations, the embedded store.
//! - [`api`]: the admin HTTP API, and the table of metrics.
//! - [`coordinator`]: the daemon that holds the cluster map.
//! - [`node`]: the daemon that holds disks and replicates placement groups.
//! - [`gateway`]: serves volumes to virtual machines.

// The crate's readers are its developers: links to private constants and modules help them.
#![allow(rustdoc::private_intra_doc_links)]

pub mod api;
pub mod cli;
pub mod coordinator;
pub mod core;
pub mod disk;
pub mod gateway;
pub mod meta;
pub mod net;
pub mod node;
pub mod wire;

#[cfg(test)]
mod arrows {
    //! Imports flow one way.

    use std::path::Path;

    /// Who may import whom, besides itself.
    const ALLOWED: [(&str, &[&str]); 10] = [
        ("core", &[]),
        ("wire", &["core"]),
        ("net", &["core", "wire"]),
        ("disk", &["core", "wire"]),
        ("meta", &["core", "wire"]),
        ("api", &["core", "wire"]),
        ("coordinator", &["core", "wire", "net", "meta", "api"]),
        ("node", &["core", "wire", "net", "disk", "api"]),
        ("gateway", &["core", "wire", "net", "api"]),
        // `net`: a certificate's key is made where the command runs, and never travels.
        ("cli", &["core", "net", "api", "coordinator", "node", "gateway"]),
    ];

    fn sources(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }

    #[test]
    fn imports_flow_one_way() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut seen = 0;
        for (module, allowed) in ALLOWED {
            let mut files = Vec::new();
            sources(&src.join(module), &mut files);
            for file in files {
                let text = std::fs::read_to_string(&file).unwrap();
                for (at, _) in text.match_indices("crate::") {
                    let rest = &text[at + "crate::".len()..];
                    let target: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    seen += 1;
                    assert!(
                        target == module || allowed.contains(&target.as_str()),
                        "{} imports {target}: {module} may import only {allowed:?}",
                        file.display()
                    );
                }
            }
        }
        assert!(seen > 100, "the test reads the sources");
    }
}
