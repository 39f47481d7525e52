//! One request of a daemon to the coordinator's admin API: joining, and trading a token for a certificate.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::ApiError;

/// Joining waits no longer for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Posts JSON and takes JSON; blocking.
///
/// # Errors
/// The API can't be reached, or its own words.
pub fn post_json<T: DeserializeOwned>(url: &str, bearer: Option<&str>, body: &impl Serialize) -> Result<T, ApiError> {
    let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
    let mut request = ureq::Agent::new_with_config(config).post(url);
    if let Some(token) = bearer {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let unreachable = |e: &dyn std::fmt::Display| ApiError {
        error: format!(
            "the coordinator's admin API does not answer at {url} ({e}): check that it runs and that the address is right"
        ),
    };
    let mut response = request.send_json(body).map_err(|e| unreachable(&e))?;
    let text = response.body_mut().read_to_string().map_err(|e| unreachable(&e))?;
    if response.status().is_success() {
        return serde_json::from_str(&text)
            .map_err(|e| ApiError { error: format!("{url} answered something else: {e}") });
    }
    let words = serde_json::from_str::<ApiError>(&text).map_or_else(|_| text.clone(), |e| e.error);
    Err(ApiError { error: words })
}
