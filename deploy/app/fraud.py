"""The application of these examples: `velo run fraud.py:spree`. Put yours in its place."""

from velo import stream_fn


@stream_fn
async def spree(payments, state):
    """Flag a card whose payment is far above what it has paid so far."""
    async for payment in payments:
        count, total = state.get("count", 0), state.get("total", 0)
        if count >= 3 and payment["amount"] > 5 * total / count:
            yield {"card": payment["card"], "amount": payment["amount"], "usual": total / count}
        state["count"], state["total"] = count + 1, total + payment["amount"]
