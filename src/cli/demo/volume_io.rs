//! Whole-volume IO of the demo: fill it with the model's content, read it all back and compare.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use crate::core::units::BLOCK_BYTES;
use crate::gateway::nbd::client::Client;

use super::content::Model;

/// Bytes of one request: large enough for full streaming speed.
const REQUEST_BYTES: u64 = 1 << 20;
/// Requests in flight; with the size above, 8 MiB.
const IN_FLIGHT: usize = 8;
/// A request that takes longer hangs: the cluster is whole while these run.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// Writes the whole volume and flushes; `progress` hears how many bytes are done, and may end it.
pub async fn fill(
    client: &Client,
    model: &Arc<Model>,
    progress: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    each_piece(model, progress, |first, len| {
        let (client, model) = (client.clone(), Arc::clone(model));
        async move {
            let mut data = vec![0; len as usize];
            model.fill(first, &mut data);
            let written = client.write(first * BLOCK_BYTES, data.into(), false).await;
            written.map_err(|e| anyhow::anyhow!("writing at {} failed: {e}", first * BLOCK_BYTES))
        }
    })
    .await?;
    client.flush().await.map_err(|e| anyhow::anyhow!("the flush failed: {e}"))
}

/// Reads the whole volume and compares each byte.
pub async fn verify(
    client: &Client,
    model: &Arc<Model>,
    progress: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    each_piece(model, progress, |first, len| {
        let (client, model) = (client.clone(), Arc::clone(model));
        async move {
            let read = client.read(first * BLOCK_BYTES, len as u32).await;
            let read = read.map_err(|e| anyhow::anyhow!("reading at {} failed: {e}", first * BLOCK_BYTES))?;
            anyhow::ensure!(read.len() as u64 == len, "a read gave {} bytes instead of {len}", read.len());
            model.check(first, &read).map_err(|e| anyhow::anyhow!("the volume is wrong: {e}"))
        }
    })
    .await
}

/// Runs `work(first block, bytes)` over the volume, several at once.
async fn each_piece<W: Future<Output = anyhow::Result<()>>>(
    model: &Model,
    mut progress: impl FnMut(u64) -> anyhow::Result<()>,
    work: impl Fn(u64, u64) -> W,
) -> anyhow::Result<()> {
    let size = model.blocks() * BLOCK_BYTES;
    let pieces = (0..size.div_ceil(REQUEST_BYTES)).map(|i| {
        let start = i * REQUEST_BYTES;
        let len = REQUEST_BYTES.min(size - start);
        let outcome = work(start / BLOCK_BYTES, len);
        async move {
            let in_time = tokio::time::timeout(REQUEST_TIMEOUT, outcome).await;
            let hangs = || anyhow::anyhow!("no answer to the request at {start} in {} s", REQUEST_TIMEOUT.as_secs());
            in_time.unwrap_or_else(|_| Err(hangs())).map(|()| len)
        }
    });
    let mut running = stream::iter(pieces).buffer_unordered(IN_FLIGHT);
    let mut done = 0;
    while let Some(piece) = running.next().await {
        done += piece?;
        progress(done)?;
    }
    Ok(())
}
