//! Real clients: libnbd's tools, qemu's tools, fio.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evenkeel::gateway::nbd::{Export, Limits, Listener, NoObserver, Server};
use serde_json::Value;

use crate::file::FileBackend;
use crate::setup::{MIB, TestServer, VOLUME, pattern, run, run_ok};

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_the_export() {
    let test = TestServer::start(64 * MIB).await;
    for uri in [test.uri(), test.uri().replace(VOLUME, "")] {
        let info: Value = serde_json::from_str(&run_ok("nbdinfo", &["--json", &uri]).await).expect("JSON");
        let export = &info["exports"][0];
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        assert_eq!(export["export-size"], 64 * MIB);
        assert_eq!(export["contexts"][0], "base:allocation");
        for can in
            ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_df", "can_cache", "can_fast_zero"]
        {
            assert_eq!(export[can], true, "{can}");
        }
        assert_eq!(export["is_read_only"], false);
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 * MIB);
    }
    let list = run_ok("nbdinfo", &["--list", &test.uri()]).await;
    assert!(list.contains(&format!("export=\"{VOLUME}\"")), "{list}");
    let unknown = run("nbdinfo", &[&test.uri().replace(VOLUME, "other")]).await;
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("server replied with error to opt_go"), "{unknown:?}");
    test.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_show_holes() {
    let test = TestServer::start(64 * MIB).await;
    let client = test.client().await;
    client.write(16 * MIB, pattern(MIB as usize, 1).into(), true).await.expect("writes");
    client.disconnect().await;
    let map: Value = serde_json::from_str(&run_ok("nbdinfo", &["--map", "--json", &test.uri()]).await).expect("JSON");
    let map: Vec<_> = map
        .as_array()
        .expect("a list")
        .iter()
        .map(|e| (e["offset"].as_u64(), e["length"].as_u64(), e["type"].as_u64()))
        .collect();
    let expected = [(0, 16 * MIB, 3), (16 * MIB, MIB, 0), (17 * MIB, 47 * MIB, 3)];
    assert_eq!(map, expected.map(|(offset, len, kind)| (Some(offset), Some(len), Some(kind))));
    let map: Value =
        serde_json::from_str(&run_ok("qemu-img", &["map", "--output=json", "-f", "raw", &test.uri()]).await)
            .expect("JSON");
    assert_eq!(map[0]["length"], 16 * MIB);
    assert_eq!(map[0]["data"], false);
    assert_eq!(map[0]["zero"], true);
    assert_eq!(map[1]["data"], true);
    test.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_both_ways_over_several_connections() {
    let test = TestServer::start(64 * MIB).await;
    let (from, to) = (test.path("from"), test.path("to"));
    let mut image = pattern(64 * MIB as usize, 7);
    image[8 << 20..24 << 20].fill(0);
    fs::write(&from, &image).expect("writes");
    let (from, to) = (from.display().to_string(), to.display().to_string());
    run_ok("nbdcopy", &["--connections=4", "--requests=64", "--flush", &from, &test.uri()]).await;
    assert!(test.backend.flushes.load(Ordering::Relaxed) > 0);
    assert!(fs::read(test.path("disk")).expect("reads") == image, "the disk differs from the image");
    run_ok("nbdcopy", &["--connections=4", &test.uri(), &to]).await;
    assert!(fs::read(&to).expect("reads") == image, "the copy differs from the image");
    test.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_compares_and_reads_back() {
    let test = TestServer::start(32 * MIB).await;
    let (from, to) = (test.path("from"), test.path("to.qcow2"));
    let mut image = pattern(32 * MIB as usize, 3);
    image[4 << 20..20 << 20].fill(0);
    fs::write(&from, &image).expect("writes");
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let info: Value =
        serde_json::from_str(&run_ok("qemu-img", &["info", "--output=json", &test.uri()]).await).expect("JSON");
    assert_eq!(info["virtual-size"], 32 * MIB);
    run_ok("qemu-img", &["convert", "-n", "-m", "16", "-W", "-f", "raw", "-O", "raw", &from, &test.uri()]).await;
    run_ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", &from, &test.uri()]).await;
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &test.uri(), &to]).await;
    run_ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &from, &to]).await;
    test.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_writes_discards_and_zeroes() {
    let test = TestServer::start(64 * MIB).await;
    let uri = test.uri();
    let printed = run_ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-d",
            "unmap",
            &uri,
            "-c",
            "write -P 0xa5 1M 4M",
            "-c",
            "write -f -P 0x11 8M 64k",
            "-c",
            "read -P 0xa5 1M 4M",
            "-c",
            "discard 2M 1M",
            "-c",
            "read -P 0 2M 1M",
            "-c",
            "write -z 3M 64k",
            "-c",
            "write -z -u 4M 64k",
            "-c",
            "read -P 0 3M 64k",
            "-c",
            "read -P 0 4M 64k",
            "-c",
            "read -P 0xa5 4160k 64k",
            // qemu itself rounds what isn't aligned to the advertised 512 bytes.
            "-c",
            "write -P 0x77 10000 1000",
            "-c",
            "read -P 0x77 10000 1000",
            "-c",
            "write -P 0x78 512 512",
            "-c",
            "read -P 0x78 512 512",
            "-c",
            "flush",
            "-c",
            "read -P 0x11 8M 64k",
        ],
    )
    .await;
    assert!(!printed.contains("verification failed") && !printed.contains("error"), "{printed}");
    let beyond = run("qemu-io", &["-f", "raw", &uri, "-c", "write 63M 2M"]).await;
    let printed = format!("{}{}", String::from_utf8_lossy(&beyond.stdout), String::from_utf8_lossy(&beyond.stderr));
    assert!(printed.contains("error") || printed.contains("failed"), "{printed}");
    test.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fio_verifies_what_it_wrote() {
    let test = TestServer::start(64 * MIB).await;
    let uri = format!("--uri={}", test.uri());
    for mode in ["--rw=randwrite", "--rw=write"] {
        let size = if mode.ends_with("randwrite") { "--bs=4k" } else { "--bsrange=512-1m" };
        let printed = run_ok(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                mode,
                size,
                "--bs_unaligned=0",
                "--blockalign=512",
                "--iodepth=32",
                "--size=64m",
                "--io_size=32m",
                "--verify=crc32c",
                "--do_verify=1",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--fsync=500",
            ],
        )
        .await;
        assert!(printed.contains("err= 0"), "{printed}");
    }
    test.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_serves_on_loopback() {
    let folder = tempfile::tempdir().expect("folder");
    let backend = Arc::new(FileBackend::create(&folder.path().join("disk"), 16 * MIB));
    let listener = Listener::bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("binds");
    let address = listener.tcp_address().expect("TCP");
    let server =
        Server::start(listener, Arc::new(Export::new(VOLUME, backend)), Arc::new(NoObserver), Limits::default());
    let uri = format!("nbd://{address}/{VOLUME}");
    run_ok("qemu-io", &["-f", "raw", &uri, "-c", "write -P 9 0 8M", "-c", "read -P 9 0 8M"]).await;
    server.stop(Duration::from_secs(5)).await;
}
