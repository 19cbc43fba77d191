// Package standardwebhooks stands in for the public Go module, which neither Debian nor the other registries of the tests
// have: the two functions that the example of docs/receivers.md calls, by the Standard Webhooks specification.
package standardwebhooks

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const tolerance = 5 * time.Minute

// Webhook verifies what was signed with one secret.
type Webhook struct{ secret []byte }

// NewWebhook takes a secret in its text form, `whsec_…`.
func NewWebhook(secret string) (*Webhook, error) {
	bytes, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	return &Webhook{bytes}, err
}

// Verify returns an error unless one of the signatures is this secret's and the timestamp is of now.
func (wh *Webhook) Verify(payload []byte, headers http.Header) error {
	sent := headers.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(sent, 10, 64)
	if err != nil {
		return err
	}
	if age := time.Since(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return errors.New("the timestamp is not of now")
	}
	mac := hmac.New(sha256.New, wh.secret)
	mac.Write([]byte(headers.Get("webhook-id") + "." + sent + "."))
	mac.Write(payload)
	wanted := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	for _, signature := range strings.Fields(headers.Get("webhook-signature")) {
		if hmac.Equal([]byte(signature), []byte(wanted)) {
			return nil
		}
	}
	return errors.New("no signature is this secret's")
}
