"""Will this order take longer than 45 minutes? Asked when it is placed."""

from datetime import datetime

import tidemill as tm


class Placed(tm.Event, stream="order-placed", key="order_id", time="placed_at"):
    order_id: str
    shop: str
    amount: float
    placed_at: datetime


class Delivered(tm.Event, stream="order-delivered", key="order_id", time="delivered_at"):
    order_id: str
    shop: str
    minutes: float
    delivered_at: datetime


# How busy the shop is, and how long it takes just now.
orders = tm.View("orders", Placed, by="shop", features={"orders_1h": tm.count("1h")})
deliveries = tm.View(
    "deliveries",
    Delivered,
    by="shop",
    features={
        "mean_minutes_1h": tm.mean("minutes", "1h"),
        "worst_minutes_1h": tm.max("minutes", "1h"),
        "late_share_7d": tm.mean("minutes > 45", "7d"),
    },
)

late_orders = tm.Pipeline(
    "late-orders",
    request=Placed,
    features={
        "orders": orders.on("shop"),
        "deliveries": deliveries.on("shop"),
        "amount": "amount",
        "hour": "hour(placed_at)",
        "queue": "orders.orders_1h * deliveries.mean_minutes_1h",
    },
    label=tm.Label(Delivered, "minutes > 45", by="order_id", wait="3h"),
    learner=tm.XGBoost(max_depth=3, n_estimators=80),
    train=tm.Train(window="14d", min_rows=1_000, trials=1),
    gates=[tm.AtLeast("roc_auc", 0.6)],
)
