//! Which attempts and deliveries a list shows, and the numbers and words for how a delivery stands.

use postrider_model::DeliveryState;
use utoipa::IntoParams;

use crate::error::Error;
use crate::page::{FromParams, Params};

/// Which attempts or deliveries.
#[derive(Clone, Copy, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatusQuery {
    /// 0 success, 1 pending, 2 fail, 3 sending, 4 cancelled.
    #[param(minimum = 0, maximum = 4)]
    status: Option<u8>,
    /// Show cancelled deliveries as 4 rather than 2.
    #[param(default = false)]
    expanded_statuses: Option<bool>,
}

impl FromParams for StatusQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let status = params.parsed::<u8>("status")?;
        if status.is_some_and(|status| status > 4) {
            return Err(Error::invalid(&["query", "status"], "Must be 0, 1, 2, 3 or 4."));
        }
        Ok(Self {
            status,
            expanded_statuses: params.flag("expanded_statuses")?,
        })
    }
}

impl StatusQuery {
    /// The states that a status stands for, as it is shown.
    pub(super) fn states(self) -> Vec<DeliveryState> {
        let expanded = self.expanded_statuses.unwrap_or(false);
        match self.status {
            None => Vec::new(),
            Some(0) => vec![DeliveryState::Delivered],
            Some(1) => vec![DeliveryState::Pending],
            Some(2) if expanded => vec![DeliveryState::Exhausted],
            Some(2) => vec![DeliveryState::Exhausted, DeliveryState::Cancelled],
            Some(3) => vec![DeliveryState::Retrying],
            Some(_) => vec![DeliveryState::Cancelled],
        }
    }

    pub(super) fn shown(self, state: DeliveryState) -> (u8, &'static str) {
        match state {
            DeliveryState::Delivered => (0, "success"),
            DeliveryState::Pending => (1, "pending"),
            DeliveryState::Exhausted => (2, "fail"),
            DeliveryState::Retrying => (3, "sending"),
            DeliveryState::Cancelled if self.expanded_statuses.unwrap_or(false) => (4, "canceled"),
            DeliveryState::Cancelled => (2, "fail"),
        }
    }

    /// An attempt has succeeded or failed; the other statuses are a delivery's, and no attempt has them.
    pub(super) fn attempts(self) -> Option<Option<bool>> {
        match self.status {
            None => Some(None),
            Some(0) => Some(Some(true)),
            Some(2) => Some(Some(false)),
            Some(_) => None,
        }
    }
}

/// Which attempts, and how much of them.
#[derive(Clone, Copy, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AttemptQuery {
    /// Whose response status is in this class; 0 means no response.
    #[param(value_type = Option<u16>)]
    pub(super) status_code_class: Option<u16>,
    /// Bring the message along, without its payload.
    #[param(default = false)]
    pub(super) with_msg: Option<bool>,
}

impl FromParams for AttemptQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let status_code_class = params.parsed::<u16>("status_code_class")?;
        if status_code_class.is_some_and(|class| ![0, 100, 200, 300, 400, 500].contains(&class)) {
            let loc = ["query", "status_code_class"];
            return Err(Error::invalid(&loc, "Must be 0, 100, 200, 300, 400 or 500."));
        }
        Ok(Self {
            status_code_class,
            with_msg: params.flag("with_msg")?,
        })
    }
}

/// Which endpoint.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EndpointQuery {
    /// To this endpoint, by id or uid.
    pub(super) endpoint_id: Option<String>,
}

impl FromParams for EndpointQuery {
    fn from_params(params: &Params) -> Result<Self, Error> {
        let endpoint_id = params
            .text("endpoint_id")
            .filter(|text| !text.is_empty())
            .map(str::to_owned);
        Ok(Self { endpoint_id })
    }
}
