//! A new secrets key: put behind the old one, before it, everything sealed anew, the old one dropped; while producers send.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use postrider_testkit::receiver::Receiver;
use reqwest::Method;
use serde_json::json;

use crate::api::Api;
use crate::cli;
use crate::stack::{SECRETS_KEY, SOON, Shape, Stack};

const NEW_KEY: &str = "psk_Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";
const SETTING: &str = "POSTRIDER_SECRETS__KEY";
const DRAIN: Duration = Duration::from_secs(60);

async fn restart(stack: &mut Stack, keys: &str) -> Result<()> {
    for process in stack.processes_mut() {
        let status = process.terminate(DRAIN).await?;
        ensure!(status.success(), "it ended with {status}");
        process.set_env(SETTING, Some(keys));
        process.start_again().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_secrets_key_is_changed_embedded() -> Result<()> {
    let data = tempfile::tempdir()?;
    let stack =
        Stack::embedded_with(|builder| builder.data_dir(data.path()).env(SETTING, SECRETS_KEY)).await?;
    let data = data.path().to_str().context("a path in UTF-8")?.to_owned();
    change(stack, &[("POSTRIDER_DATA_DIR", &data)]).await
}

#[tokio::test]
async fn the_secrets_key_is_changed_scaled_out() -> Result<()> {
    let stack = Stack::scaled(Shape::SMALL).await?;
    let env = stack.shared.as_ref().context("a scaled-out stack")?.settings();
    let env: Vec<(&str, String)> = env
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    change(stack, &env).await
}

/// A gateway that has just started reads configuration first, for which a producer may have to try again.
async fn send(api: &Api, app: &str, n: usize) -> Result<String> {
    api.send_until_accepted(app, &json!({ "n": n }), &format!("key-{n}"), SOON)
        .await
}

async fn change(mut stack: Stack, env: &[(&str, &str)]) -> Result<()> {
    let (old_first, new_first) = (
        format!("{SECRETS_KEY},{NEW_KEY}"),
        format!("{NEW_KEY},{SECRETS_KEY}"),
    );
    let with = |keys: &str| {
        let mut env: Vec<(&str, String)> = env
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        env.retain(|(name, _)| *name != SETTING);
        env.push((SETTING, keys.to_owned()));
        env
    };
    let reseal = async |keys: &str| {
        let env = with(keys);
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        cli::output(&["key", "reseal"], &env).await
    };
    let receiver = Receiver::start().await?;
    let api = stack.api();
    let app = api.app().await?;
    let endpoint = api.endpoint(&app, &receiver.url("/hook")).await?;
    let path = format!("/app/{app}/endpoint/{endpoint}");
    api.patch(&path, &json!({"paused": true})).await?;
    let secret = api.get(&format!("{path}/secret")).await?;
    let mut sent = vec![send(&api, &app, 0).await?];

    restart(&mut stack, &old_first).await?;
    sent.push(send(&stack.api(), &app, 1).await?);
    restart(&mut stack, &new_first).await?;
    let api = stack.api();
    sent.push(send(&api, &app, 2).await?);
    for id in &sent {
        api.wait_status(&app, id, "pending").await?;
    }

    // Too early: without the old key it cannot be read, and nothing is harmed.
    let refused = reseal(NEW_KEY).await?;
    let said = String::from_utf8_lossy(&refused.stdout);
    ensure!(
        !refused.status.success() && said.contains("unreadable: "),
        "{said}"
    );
    let done = reseal(&new_first).await?;
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(
        done.status.success()
            && said.contains("endpoints: 1 rows looked at, 2 values sealed anew")
            && said.contains("payloads: 3 rows looked at, 2 values sealed anew")
            && said.contains("everything is sealed with key"),
        "{said}"
    );

    restart(&mut stack, NEW_KEY).await?;
    let api = stack.api();
    ensure!(
        api.get(&format!("{path}/secret")).await? == secret,
        "the secret changed"
    );
    api.patch(&path, &json!({"paused": false})).await?;
    let came = receiver
        .wait_for("/hook", SOON, |requests| requests.len() >= 3)
        .await?;
    for (n, id) in sent.iter().enumerate() {
        let request = came
            .iter()
            .find(|request| request.webhook_id() == id)
            .context("each arrives")?;
        ensure!(
            request.body.as_ref() == format!(r#"{{"n":{n}}}"#).as_bytes(),
            "{request:?}"
        );
        api.wait_status(&app, id, "success").await?;
    }
    let answer = api.call(Method::GET, "/parked", None).await?;
    ensure!(answer.body["data"] == json!([]), "{answer:?}");
    Ok(())
}
