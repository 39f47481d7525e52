//! Daemon configuration: flags over `EVENKEEL_*` variables over the TOML file over defaults.
//!
//! clap merges flags and variables; this module reads the file and fills what they leave open. Invariants: an unknown
//! key in a file is an error that names it; sizes are written as in `4GiB`; a daemon's admin address is on loopback.
//!
//! Non-goals: settings that the cluster map holds (throttle, grace, debounce after the first start).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::core::units::parse_bytes;

use super::args::{CoordinatorRunArgs, GatewayArgs, NodeRunArgs};

/// A configuration file has a few dozen lines; more than this is another file.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The class of a new disk that is given none.
const DEFAULT_CLASS: &str = "ssd";
/// A node drives its disks from one process; more than this is a typing error.
const DISKS_MAX: usize = 256;

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadConfig {
    /// The file can't be read.
    #[error("can't read the configuration file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// The file has an unknown key, a wrong type or broken syntax.
    #[error("the configuration file {path} is wrong: {problem}")]
    Malformed { path: PathBuf, problem: String },
    /// Nothing says what is needed.
    #[error("no {key} is given: use --{flag}, {variable}, or `{key} = …` in the configuration file")]
    Missing { key: &'static str, flag: &'static str, variable: &'static str },
    /// A value that can't be.
    #[error("{what}: {problem}")]
    Wrong { what: String, problem: String },
}

/// A disk of a node as the options say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Directory or block device.
    pub path: PathBuf,
    /// `None`: as the disk has it, or all of the device.
    pub size_bytes: Option<u64>,
    /// For instance `ssd`, which is also what a new disk gets if nothing is said.
    pub class: String,
}

impl FromStr for DiskSpec {
    type Err = String;

    /// `PATH[,size=S][,class=C]`. A path with a comma needs the configuration file.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err("write PATH[,size=S][,class=C]".to_owned());
        }
        let mut disk = DiskSpec { path: path.into(), size_bytes: None, class: DEFAULT_CLASS.to_owned() };
        for part in parts {
            match part.split_once('=') {
                Some(("size", size)) => disk.size_bytes = Some(parse_bytes(size).map_err(|e| e.to_string())?),
                Some(("class", class)) => disk.class = class.to_owned(),
                _ => return Err(format!("{part:?} is unknown: write PATH[,size=S][,class=C]")),
            }
        }
        Ok(disk)
    }
}

/// What `coordinator run` needs.
#[derive(Clone, Debug, PartialEq)]
pub struct CoordinatorSettings {
    pub dir: PathBuf,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub debounce_seconds: Option<f64>,
    pub grace_seconds: Option<f64>,
}

/// What `node run` needs.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    pub dir: PathBuf,
    pub name: String,
    pub listen: SocketAddr,
    /// 0: a free one, as for `bulk_port`.
    pub lease_port: u16,
    pub bulk_port: u16,
    pub admin: SocketAddr,
    /// The coordinator's admin URL.
    pub api: String,
    /// Needed at the first start.
    pub join_token: Option<String>,
    pub disks: Vec<DiskSpec>,
    pub zone: String,
    pub rack: String,
}

/// What `gateway` needs besides the cluster's API and token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    pub volume: String,
    pub listen: GatewayListen,
    pub name: String,
    pub bind: IpAddr,
    pub admin: Option<SocketAddr>,
    pub take_over: bool,
}

/// Where a gateway serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayListen {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoordinatorFile {
    dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    debounce_seconds: Option<f64>,
    grace_seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    dir: Option<PathBuf>,
    name: Option<String>,
    listen: Option<SocketAddr>,
    lease_port: Option<u16>,
    bulk_port: Option<u16>,
    admin: Option<SocketAddr>,
    api: Option<String>,
    join_token_file: Option<PathBuf>,
    zone: Option<String>,
    rack: Option<String>,
    #[serde(default)]
    disk: Vec<DiskEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskEntry {
    path: PathBuf,
    size: Option<Size>,
    class: Option<String>,
}

/// A size as a number of bytes or as text with a unit.
#[derive(Debug, Deserialize)]
#[serde(try_from = "SizeText")]
struct Size(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;
    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Bytes(bytes) => Ok(Size(bytes)),
            SizeText::Text(text) => parse_bytes(&text).map(Size).map_err(|e| e.to_string()),
        }
    }
}

/// The gateway's file also says which cluster, so it is public to `cli`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayFile {
    volume: Option<String>,
    socket: Option<PathBuf>,
    listen: Option<SocketAddr>,
    name: Option<String>,
    bind: Option<IpAddr>,
    admin: Option<SocketAddr>,
    #[serde(default)]
    take_over: bool,
    pub api: Option<String>,
    pub token_file: Option<PathBuf>,
    pub cluster: Option<PathBuf>,
}

/// Merges `coordinator run`'s options with its file.
///
/// # Errors
/// The file is unusable, or something needed is missing.
pub fn coordinator(args: &CoordinatorRunArgs) -> Result<CoordinatorSettings, LoadConfig> {
    let file: CoordinatorFile = read(args.config.as_deref())?;
    let settings = CoordinatorSettings {
        dir: args.dir.clone().or(file.dir).ok_or(missing("dir", "dir", "EVENKEEL_DIR"))?,
        listen: args.listen.or(file.listen).unwrap_or(loopback(7401)),
        admin: args.admin.or(file.admin).unwrap_or(loopback(7400)),
        debounce_seconds: args.debounce_seconds.or(file.debounce_seconds),
        grace_seconds: args.grace_seconds.or(file.grace_seconds),
    };
    for (key, seconds) in [("debounce_seconds", settings.debounce_seconds), ("grace_seconds", settings.grace_seconds)] {
        if seconds.is_some_and(|s| !(0.0..=365.0 * 86_400.0).contains(&s)) {
            return Err(wrong(key, "seconds lie between 0 and one year"));
        }
    }
    on_loopback("admin", settings.admin)?;
    Ok(settings)
}

/// Merges `node run`'s options with its file; `api` is the one of the global options.
///
/// # Errors
/// The file is unusable, something needed is missing, or values contradict each other.
pub fn node(args: &NodeRunArgs, api: Option<String>) -> Result<NodeSettings, LoadConfig> {
    let file: NodeFile = read(args.config.as_deref())?;
    let disks = if args.disks.is_empty() {
        let entry = |d: DiskEntry| DiskSpec {
            path: d.path,
            size_bytes: d.size.map(|s| s.0),
            class: d.class.unwrap_or_else(|| DEFAULT_CLASS.to_owned()),
        };
        file.disk.into_iter().map(entry).collect()
    } else {
        args.disks.clone()
    };
    check_disks(&disks)?;
    let name = args.name.clone().or(file.name).ok_or(missing("name", "name", "EVENKEEL_NAME"))?;
    check_name("node name", &name)?;
    let token_file = args.join_token_file.clone().or(file.join_token_file);
    let settings = NodeSettings {
        dir: args.dir.clone().or(file.dir).ok_or(missing("dir", "dir", "EVENKEEL_DIR"))?,
        name,
        listen: args.listen.or(file.listen).unwrap_or(loopback(7410)),
        lease_port: args.lease_port.or(file.lease_port).unwrap_or(0),
        bulk_port: args.bulk_port.or(file.bulk_port).unwrap_or(0),
        admin: args.admin.or(file.admin).unwrap_or(loopback(0)),
        api: api.or(file.api).ok_or(missing("api", "api", "EVENKEEL_API"))?,
        join_token: match (&args.join_token, token_file) {
            (Some(token), _) => Some(token.trim().to_owned()),
            (None, Some(path)) => read_join_token(&path)?,
            (None, None) => None,
        },
        disks,
        zone: args.zone.clone().or(file.zone).unwrap_or_default(),
        rack: args.rack.clone().or(file.rack).unwrap_or_default(),
    };
    let (listen, lease, bulk) = (settings.listen.port(), settings.lease_port, settings.bulk_port);
    if (lease != 0 && [listen, bulk].contains(&lease)) || (bulk != 0 && bulk == listen) {
        return Err(wrong("node's ports", "listen, lease_port and bulk_port must differ"));
    }
    Ok(settings)
}

/// Reads the gateway's file; [`gateway`] merges it.
///
/// # Errors
/// The file is unusable.
pub fn gateway_file(args: &GatewayArgs) -> Result<GatewayFile, LoadConfig> {
    read(args.config.as_deref())
}

/// Merges `gateway`'s options with its file.
///
/// # Errors
/// Something needed is missing, or values contradict each other.
pub fn gateway(args: &GatewayArgs, file: GatewayFile) -> Result<GatewaySettings, LoadConfig> {
    let listen = match (&args.socket, args.listen, file.socket, file.listen) {
        (Some(socket), ..) => GatewayListen::Unix(socket.clone()),
        (None, Some(addr), ..) => GatewayListen::Tcp(addr),
        (None, None, Some(_), Some(_)) => {
            return Err(wrong("configuration file", "give socket or listen, not both"));
        }
        (None, None, Some(socket), None) => GatewayListen::Unix(socket),
        (None, None, None, Some(addr)) => GatewayListen::Tcp(addr),
        (None, None, None, None) => return Err(missing("socket", "socket", "EVENKEEL_SOCKET")),
    };
    if let GatewayListen::Tcp(addr) = listen {
        on_loopback("listen", addr)?;
    }
    let name = args.name.clone().or(file.name).unwrap_or_else(|| format!("gateway-{}", std::process::id()));
    check_name("gateway name", &name)?;
    let settings = GatewaySettings {
        volume: args.volume.clone().or(file.volume).ok_or(missing("volume", "volume", "EVENKEEL_VOLUME"))?,
        listen,
        name,
        bind: args.bind.or(file.bind).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        admin: args.admin.or(file.admin),
        take_over: args.take_over || file.take_over,
    };
    Ok(settings)
}

fn read<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, LoadConfig> {
    let Some(path) = path else { return Ok(T::default()) };
    let fail = |source| LoadConfig::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    let malformed = |problem| LoadConfig::Malformed { path: path.to_owned(), problem };
    if size > CONFIG_BYTES_MAX {
        return Err(malformed(format!("it has {size} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    toml::from_str(&text).map_err(|e| malformed(one_line(&text, &e)))
}

/// toml's own message spans several lines with a drawing; the first line number and the sentence are enough.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().replace('\n', ", ");
    at.map_or(message.clone(), |line| format!("line {line}: {message}"))
}

fn read_join_token(path: &Path) -> Result<Option<String>, LoadConfig> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // A token is needed once; its file may be gone when the node starts again.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadConfig::Read { path: path.to_owned(), source }),
    }
}

fn check_disks(disks: &[DiskSpec]) -> Result<(), LoadConfig> {
    if disks.is_empty() {
        return Err(LoadConfig::Missing { key: "disk", flag: "disk", variable: "EVENKEEL_DISKS" });
    }
    if disks.len() > DISKS_MAX {
        return Err(wrong("disks", "a node takes at most 256"));
    }
    for (i, disk) in disks.iter().enumerate() {
        if disks[..i].iter().any(|other| other.path == disk.path) {
            return Err(wrong(&format!("disk {}", disk.path.display()), "it is given twice"));
        }
    }
    Ok(())
}

/// Names are shown in tables, used in paths and written into certificates.
fn check_name(what: &str, name: &str) -> Result<(), LoadConfig> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(plain) || name == "coordinator" {
        let problem = "use 1 to 63 letters, digits, `-`, `_`, `.` (and not the word coordinator)";
        return Err(wrong(&format!("{what} {name:?}"), problem));
    }
    Ok(())
}

fn on_loopback(key: &str, addr: SocketAddr) -> Result<(), LoadConfig> {
    if addr.ip().is_loopback() {
        return Ok(());
    }
    Err(wrong(&format!("{key} {addr}"), "it is without TLS in this release, so it must be a loopback address"))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn missing(key: &'static str, flag: &'static str, variable: &'static str) -> LoadConfig {
    LoadConfig::Missing { key, flag, variable }
}

fn wrong(what: &str, problem: &str) -> LoadConfig {
    LoadConfig::Wrong { what: what.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let (_dir, path) = file("dir = \"/a\"\nlisten = \"127.0.0.2:1\"\ngrace_seconds = 5\n");
        let args = CoordinatorRunArgs { config: Some(path), dir: Some("/b".into()), ..CoordinatorRunArgs::default() };
        let settings = coordinator(&args).unwrap();
        assert_eq!(settings.dir, PathBuf::from("/b"));
        assert_eq!(settings.listen, "127.0.0.2:1".parse().unwrap());
        assert_eq!(settings.admin, "127.0.0.1:7400".parse().unwrap());
        assert_eq!((settings.debounce_seconds, settings.grace_seconds), (None, Some(5.0)));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let (_dir, path) = file("dir = \"/a\"\n\ngrace_second = 5\n");
        let args = CoordinatorRunArgs { config: Some(path.clone()), ..CoordinatorRunArgs::default() };
        let error = coordinator(&args).unwrap_err().to_string();
        assert!(error.contains("grace_second") && error.contains("line 3"), "{error}");
        assert!(error.contains(&path.display().to_string()) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_node_s_file_holds_disks_with_sizes() {
        let (_dir, path) = file(
            "dir = \"/n\"\nname = \"n1\"\napi = \"http://127.0.0.1:7400\"\n\
             [[disk]]\npath = \"/d1\"\nsize = \"4GiB\"\nclass = \"ssd\"\n[[disk]]\npath = \"/d2\"\nsize = 4096\n",
        );
        let args = NodeRunArgs { config: Some(path), ..NodeRunArgs::default() };
        let settings = node(&args, None).unwrap();
        assert_eq!(settings.disks[0], "/d1,size=4GiB,class=ssd".parse().unwrap());
        assert_eq!((settings.disks[1].size_bytes, settings.disks[1].class.as_str()), (Some(4096), "ssd"));
        let args = NodeRunArgs { disks: vec!["/x".parse().unwrap()], bulk_port: Some(7411), ..args };
        let settings = node(&args, Some("http://127.0.0.1:1".into())).unwrap();
        assert_eq!((settings.disks.len(), settings.api.as_str()), (1, "http://127.0.0.1:1"));
        assert_eq!((settings.lease_port, settings.bulk_port), (0, 7411));
        let same = NodeRunArgs { lease_port: Some(7411), ..args };
        assert!(node(&same, None).unwrap_err().to_string().contains("must differ"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let missing = node(&NodeRunArgs::default(), None).unwrap_err().to_string();
        assert!(missing.contains("--disk") && missing.contains("EVENKEEL_DISKS"), "{missing}");
        let twice = vec!["/x".parse().unwrap(), "/x,class=ssd".parse().unwrap()];
        assert!(check_disks(&twice).unwrap_err().to_string().contains("twice"));
        let args = CoordinatorRunArgs {
            dir: Some("/a".into()),
            admin: Some("10.0.0.1:1".parse().unwrap()),
            ..CoordinatorRunArgs::default()
        };
        assert!(coordinator(&args).unwrap_err().to_string().contains("loopback"));
        for bad in ["", ",size=1", "/a,size=x", "/a,colour=red", "/a,b"] {
            assert!(bad.parse::<DiskSpec>().is_err(), "{bad}");
        }
        for bad in ["", "a/b", "a b", "coordinator", &"x".repeat(64)] {
            assert!(check_name("node name", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_gateway_serves_in_one_place() {
        let args = GatewayArgs { volume: Some("v".into()), ..GatewayArgs::default() };
        assert!(matches!(gateway(&args, GatewayFile::default()), Err(LoadConfig::Missing { key: "socket", .. })));
        let both = || GatewayFile {
            socket: Some("/s".into()),
            listen: Some("127.0.0.1:1".parse().unwrap()),
            ..GatewayFile::default()
        };
        assert!(matches!(gateway(&args, both()), Err(LoadConfig::Wrong { .. })));
        let args = GatewayArgs { socket: Some("/t".into()), ..args };
        assert_eq!(gateway(&args, both()).unwrap().listen, GatewayListen::Unix("/t".into()));
        let remote = GatewayArgs {
            volume: Some("v".into()),
            listen: Some("0.0.0.0:10809".parse().unwrap()),
            ..GatewayArgs::default()
        };
        assert!(gateway(&remote, GatewayFile::default()).is_err());
    }

    #[test]
    fn the_example_files_parse() {
        let example = |name: &str| {
            Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name).with_extension("toml"))
        };
        let args = CoordinatorRunArgs { config: example("coordinator"), ..CoordinatorRunArgs::default() };
        coordinator(&args).unwrap();
        node(&NodeRunArgs { config: example("node"), ..NodeRunArgs::default() }, None).unwrap();
        let args = GatewayArgs { config: example("gateway"), ..GatewayArgs::default() };
        gateway(&args, gateway_file(&args).unwrap()).unwrap();
    }
}
