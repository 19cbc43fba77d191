//! One effect for a request that changes configuration, however often it is repeated under one `Idempotency-Key`.
//!
//! Redis keeps claims over a gateway's end, the limits inside the process do not. So in the embedded set-up the store
//! has them too: that of a new resource before the resource is made, so that a repeat after a crash at any point finds
//! the id under which to look for it or make it; that of a change once it was made, so a crash right after a rotation
//! of a secret may let its repeat rotate again.

use http::{HeaderMap, StatusCode};
use postrider_limits::{AdmitRequest, ClaimAnswer, ClaimEnd, ClaimRequest, Settlement};
use postrider_model::{AppId, Claim, UnixMillis};
use postrider_store::StoreError;
use postrider_telemetry::labels::Duplicate;
use tokio::time::Instant;

use crate::error::Error;
use crate::idempotency::{IdempotencyKey, PENDING_TTL, POLL, WAIT, in_progress, reused};
use crate::state::Api;

/// What a configuration request makes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Makes {
    /// A resource of this id: a repeat looks whether it is there.
    New([u8; 16]),
    /// A change, of which no trace tells whether it was made.
    Change,
}

/// The claim of a configuration request: what to make, or what was made.
pub(crate) struct Once {
    /// Id of the resource to make, or that an earlier request made or tried to make. Means nothing for a change.
    pub(crate) resource: [u8; 16],
    /// Whether there was an earlier request: look for the resource before making it.
    earlier: bool,
    /// What is to be settled; without a key, or when an earlier request did all of it, nothing.
    open: Option<Open>,
}

struct Open {
    app: AppId,
    claim: ClaimRequest,
    makes: Makes,
    /// The store had it before this request.
    was_kept: bool,
}

impl Once {
    /// Claims the request's key, if it has one; waits while an earlier request is in progress.
    pub(crate) async fn begin(
        api: &Api,
        app: AppId,
        headers: &HeaderMap,
        fingerprint: [u8; 32],
        makes: Makes,
    ) -> Result<Self, Error> {
        let resource = match makes {
            Makes::New(resource) => resource,
            // One of its own: two requests that claim the same resource are one request to the limits, and neither waits.
            Makes::Change => rand::random(),
        };
        let Some(key) = IdempotencyKey::from_headers(headers)? else {
            return Ok(Self {
                resource,
                earlier: false,
                open: None,
            });
        };
        let claim = ClaimRequest {
            key: key.hash(app),
            resource,
            fingerprint,
            ttl: key.ttl,
            pending_ttl: PENDING_TTL,
        };
        let open = Open {
            app,
            claim,
            makes,
            was_kept: false,
        };
        let once = open.claim(api).await?;
        if api.broker.is_durable() {
            return Ok(once);
        }
        once.remember(api).await
    }

    /// In the embedded set-up: what the store knows of the key.
    async fn remember(self, api: &Api) -> Result<Self, Error> {
        let Some(mut open) = self.open else {
            return Ok(self);
        };
        let stored = match open.stored(api).await {
            Ok(stored) => stored,
            Err(error) => {
                open.settle(api, ClaimEnd::GivenUp).await;
                return Err(error.into());
            }
        };
        let Some(stored) = stored else {
            return Ok(Self {
                open: Some(open),
                ..self
            });
        };
        if stored.fingerprint != open.claim.fingerprint {
            open.settle(api, ClaimEnd::GivenUp).await;
            return Err(reused());
        }
        if let Makes::Change = open.makes {
            open.settle(api, ClaimEnd::GivenUp).await;
            return Ok(open.done(api, stored.resource));
        }
        if stored.resource == open.claim.resource {
            return Ok(Self {
                open: Some(open),
                ..self
            });
        }
        // An earlier process' claim: this one's must name the same resource.
        open.settle(api, ClaimEnd::GivenUp).await;
        open.claim.resource = stored.resource;
        open.was_kept = true;
        let again = open.claim(api).await?;
        Ok(Self {
            earlier: true,
            ..again
        })
    }

    /// What an earlier request made, or what is made now.
    pub(crate) async fn find_or_make<T, Found>(
        &self,
        find: impl Fn() -> Found + Send,
        make: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error>
    where
        Found: Future<Output = Result<Option<T>, StoreError>> + Send,
    {
        if self.earlier
            && let Some(found) = find().await?
        {
            return Ok(found);
        }
        match make.await {
            // Another request with the key made it since: one whose commit was slow, or one that took over from this one.
            Err(error) if error.status() == StatusCode::CONFLICT && self.open.is_some() => {
                find().await?.ok_or(error)
            }
            made => made,
        }
    }

    /// Whether an earlier request did all of it.
    pub(crate) fn is_done(&self) -> bool {
        self.earlier && self.open.is_none()
    }

    /// Keeps the claim when the request succeeded and gives it up when it was refused. After a failure of ours the
    /// resource may have been made all the same: the claim stays open, and a repeat takes it over with the same id.
    pub(crate) async fn end<T>(self, api: &Api, result: Result<T, Error>) -> Result<T, Error> {
        let Some(open) = self.open else {
            return result;
        };
        match &result {
            Ok(_) => {
                if !api.broker.is_durable() && matches!(open.makes, Makes::Change) {
                    open.unless_it_fails(api.store.keep_claim(&open.to_keep()).await.map(drop));
                }
                open.settle(api, ClaimEnd::Finished).await;
            }
            Err(error) if error.status().is_client_error() => {
                if !api.broker.is_durable() && matches!(open.makes, Makes::New(_)) && !open.was_kept {
                    let dropped = api.store.drop_claim(&open.claim.key, &open.claim.resource).await;
                    open.unless_it_fails(dropped);
                }
                open.settle(api, ClaimEnd::GivenUp).await;
            }
            Err(_) => {}
        }
        result
    }
}

impl Open {
    /// Claims the key for the resource.
    async fn claim(mut self, api: &Api) -> Result<Once, Error> {
        let until = Instant::now() + WAIT;
        loop {
            let request = AdmitRequest {
                app: self.app,
                messages: 0,
                quota: None,
                claims: vec![self.claim.clone()],
            };
            let admission = api.admitter.admit(request).await;
            match admission.claims.first().copied() {
                None | Some(ClaimAnswer::Claimed | ClaimAnswer::Skipped) => return Ok(self.made(false)),
                Some(ClaimAnswer::TakenOver { resource }) => {
                    self.claim.resource = resource;
                    return Ok(self.made(true));
                }
                Some(ClaimAnswer::Held {
                    fingerprint: other, ..
                }) if other != self.claim.fingerprint => return Err(reused()),
                Some(ClaimAnswer::Held {
                    resource,
                    finished: true,
                    ..
                }) => return Ok(self.done(api, resource)),
                Some(ClaimAnswer::Held { .. }) if Instant::now() >= until => return Err(in_progress()),
                Some(ClaimAnswer::Held { .. }) => tokio::time::sleep(POLL).await,
            }
        }
    }

    fn made(self, earlier: bool) -> Once {
        Once {
            resource: self.claim.resource,
            earlier,
            open: Some(self),
        }
    }

    fn done(self, api: &Api, resource: [u8; 16]) -> Once {
        api.telemetry.duplicate(Duplicate::IdempotencyKey);
        Once {
            resource,
            earlier: true,
            open: None,
        }
    }

    /// The claim that stands in the store, which is this one if it is of a new resource and there was none.
    async fn stored(&self, api: &Api) -> Result<Option<Claim>, StoreError> {
        match self.makes {
            Makes::New(_) => api.store.keep_claim(&self.to_keep()).await.map(Some),
            Makes::Change => Ok(api.store.claims(&[self.claim.key]).await?.pop().flatten()),
        }
    }

    fn to_keep(&self) -> Claim {
        Claim {
            key: self.claim.key,
            resource: self.claim.resource,
            fingerprint: self.claim.fingerprint,
            expires_at: UnixMillis::now().plus(self.claim.ttl),
        }
    }

    /// Waited for: the next request with the same key may come at once.
    async fn settle(&self, api: &Api, end: ClaimEnd) {
        let settlement = Settlement {
            app: self.app,
            key: self.claim.key,
            resource: self.claim.resource,
            end,
        };
        api.admitter.settle_now(vec![settlement]).await;
    }

    /// The request is answered all the same: what it did is done.
    fn unless_it_fails(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            tracing::warn!(%error, app.id = %self.app, "the store missed a claim: a repeat after a restart may differ");
        }
    }
}
