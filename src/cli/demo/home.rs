//! The directory that a demo lives in, which vanishes with it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::cli::args::DemoArgs;
use crate::cli::out;
use crate::core::units::HumanBytes;

/// The kernel's limit for a Unix socket's path, less its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where the demo lives.
pub(super) struct Home {
    pub path: PathBuf,
    /// Removes itself, also when the demo fails.
    _temporary: Option<TempDir>,
    /// Given by the user and empty before: what is in it is the demo's.
    clear: Option<ClearOnDrop>,
}

impl Home {
    /// Makes it, empty.
    pub fn make(args: &DemoArgs) -> anyhow::Result<Home> {
        let Some(dir) = &args.dir else {
            let temporary =
                tempfile::Builder::new().prefix("evenkeel-demo-").tempdir().context("making a directory")?;
            return Ok(Home { path: temporary.path().to_owned(), _temporary: Some(temporary), clear: None });
        };
        let existed = dir.exists();
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.canonicalize().with_context(|| format!("finding {}", dir.display()))?;
        let is_empty = std::fs::read_dir(&path).with_context(|| format!("reading {}", dir.display()))?.next().is_none();
        anyhow::ensure!(is_empty, "{} is not empty; the demo needs an empty or a new directory", dir.display());
        let clear = (!args.keep).then(|| ClearOnDrop { path: path.clone(), with_itself: !existed });
        Ok(Home { path, _temporary: None, clear })
    }

    /// A volume of this size fits.
    pub fn check_space(&self, size: u64) -> anyhow::Result<()> {
        let socket_bytes = self.path.join("demo.sock").as_os_str().len();
        anyhow::ensure!(
            socket_bytes <= SOCKET_PATH_BYTES_MAX,
            "{} is too long a path for the volume's socket; use a shorter --dir",
            self.path.display()
        );
        let fs = rustix::fs::statvfs(&self.path).with_context(|| format!("asking for space in {:?}", self.path))?;
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        // Three copies, those that move while the old ones are kept, hashes and logs.
        let needed = 5 * size + (512 << 20);
        anyhow::ensure!(
            free >= needed,
            "{} has {} free and the demo needs about {}; use a smaller --size or --dir on a larger disk",
            self.path.display(),
            HumanBytes(free),
            HumanBytes(needed)
        );
        Ok(())
    }

    /// Removes what is left, and says so if that fails.
    pub fn clear(self) -> anyhow::Result<()> {
        let Home { path, _temporary, clear } = self;
        if let Some(temporary) = _temporary {
            temporary.close().with_context(|| format!("removing {}", path.display()))?;
        }
        drop(clear);
        Ok(())
    }
}

struct ClearOnDrop {
    path: PathBuf,
    with_itself: bool,
}

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        if let Err(e) = clear_directory(&self.path, self.with_itself) {
            out::note(format!("evenkeel: could not remove all of {}: {e}", self.path.display()));
        }
    }
}

fn clear_directory(path: &Path, with_itself: bool) -> std::io::Result<()> {
    if with_itself {
        return std::fs::remove_dir_all(path);
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: Option<PathBuf>) -> DemoArgs {
        DemoArgs { nodes: 3, size: 1 << 30, keep: false, dir }
    }

    #[test]
    fn a_directory_of_one_s_own_is_emptied_but_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let home = Home::make(&args(Some(tmp.path().to_owned()))).unwrap();
        std::fs::create_dir(home.path.join("nodes")).unwrap();
        std::fs::write(home.path.join("cluster.json"), "{}").unwrap();
        home.clear().unwrap();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_new_directory_and_a_temporary_one_vanish() {
        let tmp = tempfile::tempdir().unwrap();
        let new = tmp.path().join("new");
        Home::make(&args(Some(new.clone()))).unwrap().clear().unwrap();
        assert!(!new.exists());
        let home = Home::make(&args(None)).unwrap();
        let path = home.path.clone();
        drop(home);
        assert!(!path.exists(), "also when the demo fails");
    }

    #[test]
    fn a_directory_in_use_is_left_alone() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("thesis.txt"), "x").unwrap();
        assert!(Home::make(&args(Some(tmp.path().to_owned()))).is_err());
        assert!(tmp.path().join("thesis.txt").exists());
    }
}
