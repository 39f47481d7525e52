//! `resync jobs`, and `resync pause|resume|cancel --job`.

use crate::api::types::{JobChanged, JobInfo};
use crate::core::units::HumanBytes;

use super::Session;
use super::out::{self, Table};
use super::status::utc;

/// `resync jobs`.
pub fn list(session: &Session) -> anyhow::Result<()> {
    let client = session.client()?;
    let text = client.get_text("/v1/jobs")?;
    session.show(&client, &text, |jobs: Vec<JobInfo>| render(&jobs))
}

/// `resync jobs --job N`.
pub fn show(session: &Session, id: u64) -> anyhow::Result<()> {
    let client = session.client()?;
    let text = client.get_text(&format!("/v1/jobs/{id}"))?;
    session.show(&client, &text, |job: JobInfo| render(&[job]))
}

/// `resync pause|resume|cancel --job N`.
pub fn change(session: &Session, id: u64, verb: &str) -> anyhow::Result<()> {
    let client = session.client()?;
    let text = client.post_text(&format!("/v1/jobs/{id}/{verb}"), &serde_json::json!({}))?;
    session.show(&client, &text, |changed: JobChanged| changed.message)
}

/// `resync cancel --dry-run`.
pub fn cancel_dry_run(session: &Session, id: u64) -> anyhow::Result<()> {
    let job: JobInfo = session.client()?.get(&format!("/v1/jobs/{id}"))?;
    let message = format!("dry run, nothing was changed; {}", would_cancel(&job));
    session.show_one(&JobChanged { message, job }, |changed| changed.message.clone())
}

fn would_cancel(job: &JobInfo) -> String {
    if job.ended_unix_ms.is_some() {
        return format!("job {} has ended: {}", job.id, job.state.name());
    }
    let ended = job.moves_done + job.moves_failed + job.moves_cancelled;
    format!(
        "of job {} up to {} moves, {} of them under way, would be given up with {} still to copy; repairs would go on",
        job.id,
        job.moves_total.saturating_sub(ended),
        job.moves_active,
        HumanBytes(job.bytes_total.saturating_sub(job.bytes_done))
    )
}

fn render(jobs: &[JobInfo]) -> String {
    if jobs.is_empty() {
        return "there was no job yet: nothing had to move\n".to_owned();
    }
    let titles =
        [">JOB", "STATE", "STARTED", ">TOOK", ">MOVES", ">FAILED", ">GIVEN UP", ">COPIED", ">OF", "BY", "REASON"];
    let mut table = Table::new(&titles);
    for job in jobs {
        let took = job.ended_unix_ms.map(|end| end.saturating_sub(job.started_unix_ms) as f64 / 1000.0);
        let held = if job.holds_back { " (held back)" } else { "" };
        table.row([
            job.id.to_string(),
            format!("{}{held}", job.state.name()),
            utc(job.started_unix_ms),
            took.map_or_else(String::new, out::human_seconds),
            format!("{} of {}", job.moves_done, job.moves_total),
            job.moves_failed.to_string(),
            job.moves_cancelled.to_string(),
            HumanBytes(job.bytes_done).to_string(),
            HumanBytes(job.bytes_total).to_string(),
            job.actor.clone(),
            job.reason.clone(),
        ]);
    }
    table.render(out::colour())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::cluster::JobState;

    #[test]
    fn a_job_is_one_line() {
        let job = JobInfo {
            id: 7,
            state: JobState::Cancelled,
            reason: "node n4 added disk d4".into(),
            actor: "n4".into(),
            started_unix_ms: 1_767_225_599_999,
            ended_unix_ms: Some(1_767_225_611_999),
            moves_total: 97,
            moves_done: 12,
            moves_failed: 1,
            moves_cancelled: 84,
            moves_active: 0,
            bytes_total: 768 << 20,
            bytes_done: 96 << 20,
            holds_back: true,
        };
        let text = render(&[job]);
        for part in ["cancelled (held back)", "2025-12-31 23:59:59Z", "12 s", "12 of 97", "96 MiB", "node n4 added"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(render(&[]).contains("no job yet"));
    }
}
