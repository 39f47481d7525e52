//! Asks the coordinator at intervals, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::api::types::{NodeInfo, ResyncInfo, Status, VolumeInfo};
use crate::cli::args::TopView;
use crate::cli::client::{Client, RequestApi};

/// What the coordinator said at one time.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The whole in short.
    pub status: Status,
    /// Nodes with their disks.
    pub nodes: Vec<NodeInfo>,
    /// Copies and limits.
    pub resync: ResyncInfo,
    /// `None`: not asked for, as they aren't looked at.
    pub volumes: Option<Vec<VolumeInfo>>,
}

/// An answer, or why there is none, and when it was asked for.
pub struct News {
    /// Before the first request was sent.
    pub at: Instant,
    /// What came.
    pub outcome: Result<Seen, RequestApi>,
}

/// The thread, as the screen sees it.
pub struct Source {
    news: Receiver<News>,
    view: Arc<AtomicU8>,
}

impl Source {
    /// Begins to ask. The thread ends with its receiver.
    pub fn start(client: Client, interval: Duration) -> Source {
        // One that waits is enough: the screen takes the newest.
        let (tell, news) = bounded(1);
        let view = Arc::new(AtomicU8::new(TopView::Nodes as u8));
        let wanted = view.clone();
        std::thread::spawn(move || ask(&client, interval, &wanted, &tell));
        Source { news, view }
    }

    /// What has come since the last call.
    pub fn news(&self) -> impl Iterator<Item = News> + '_ {
        self.news.try_iter()
    }

    /// True if something has come.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// What is looked at.
    pub fn want(&self, view: TopView) {
        self.view.store(view as u8, Ordering::Relaxed);
    }
}

fn ask(client: &Client, interval: Duration, view: &AtomicU8, tell: &Sender<News>) {
    /// A change of the view is noticed within this time.
    const LOOK: Duration = Duration::from_millis(50);
    loop {
        let (at, looked_at) = (Instant::now(), view.load(Ordering::Relaxed));
        if tell.send(News { at, outcome: look(client, looked_at == TopView::Volumes as u8) }).is_err() {
            return;
        }
        while at.elapsed() < interval && view.load(Ordering::Relaxed) == looked_at {
            std::thread::sleep(LOOK.min(interval));
        }
    }
}

fn look(client: &Client, with_volumes: bool) -> Result<Seen, RequestApi> {
    Ok(Seen {
        status: client.status()?,
        nodes: client.nodes()?,
        resync: client.get("/v1/resync")?,
        volumes: if with_volumes { Some(client.get("/v1/volumes")?) } else { None },
    })
}
