//! This project's own client.

use std::time::Duration;

use bytes::Bytes;
use evenkeel::gateway::nbd::IoError;
use evenkeel::gateway::nbd::client::{Address, Client, ConnectVolume, RequestVolume};

use crate::setup::{MIB, TestServer, pattern};

#[tokio::test]
async fn reads_back_what_it_wrote() {
    let test = TestServer::start(64 * MIB).await;
    let client = test.client().await;
    assert_eq!(client.size_bytes(), 64 * MIB);
    let writes = (0..500u64).map(|block| {
        let client = client.clone();
        tokio::spawn(async move { client.write(block * 8192, pattern(4096, block).into(), block % 100 == 0).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.expect("joins").expect("writes");
    }
    client.flush().await.expect("flushes");
    for block in 0..500u64 {
        assert_eq!(client.read(block * 8192, 4096).await.expect("reads"), pattern(4096, block));
    }
    let large = Bytes::from(pattern(32 << 20, 9));
    client.write(16 * MIB, large.clone(), false).await.expect("writes");
    client.trim(17 * MIB, MIB as u32, false).await.expect("trims");
    client.write_zeroes(18 * MIB, MIB as u32, true, true).await.expect("zeroes");
    let read = client.read(16 * MIB, 32 << 20).await.expect("reads");
    assert!(read[..1 << 20] == large[..1 << 20] && read[3 << 20..] == large[3 << 20..], "read differs from write");
    assert!(read[1 << 20..3 << 20].iter().all(|byte| *byte == 0));
    client.disconnect().await;
    test.stop().await;
}

#[tokio::test]
async fn errors_are_clear() {
    let test = TestServer::start(MIB).await;
    let address = Address::Unix(test.socket());
    let refused = Client::connect(&address, "other").await.err().expect("refused");
    assert_eq!(refused.to_string(), "the server refused the export \"other\": no export named \"other\"");
    let client = test.client().await;
    let beyond = client.write(MIB, Bytes::from(vec![0; 512]), false).await;
    assert!(matches!(beyond, Err(RequestVolume::Failed(IoError::NoSpace))), "{beyond:?}");
    assert!(matches!(client.read(0, 33 << 20).await, Err(RequestVolume::TooLong(_))));
    // One request is in flight when the server ends.
    test.backend.gate.send_replace(0);
    let mut held = test.backend.held.subscribe();
    let stalled = tokio::spawn({
        let client = client.clone();
        async move { client.read(0, 512).await }
    });
    held.wait_for(|held| *held == 1).await.expect("the read reaches the backend");
    test.server.stop(Duration::ZERO).await;
    let stalled = stalled.await.expect("joins");
    assert!(matches!(stalled, Err(RequestVolume::Failed(IoError::Shutdown))), "{stalled:?}");
    let lost = loop {
        // The farewell of the server may still be on its way.
        match client.read(512, 512).await {
            Err(RequestVolume::Disconnected(reason)) => break reason,
            other => assert!(other.is_err(), "{other:?}"),
        }
    };
    assert!(!lost.is_empty());
    assert!(matches!(Client::connect(&address, "").await, Err(ConnectVolume::Connect { .. })));
}
