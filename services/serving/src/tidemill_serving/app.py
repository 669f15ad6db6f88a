"""Wires the serving service: what opens last closes first, so that calls end before what they write to."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_contracts.serving.v1.serving_pb2_grpc import add_PredictionServiceServicer_to_server
from tidemill_models.keys import load_public_key
from tidemill_models.store import open_store
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import ProgressServicer
from tidemill_runtime.redis_client import redis_client

from tidemill_serving.adapters.bundles import BundleLoader, EntryLoader
from tidemill_serving.adapters.following import Following
from tidemill_serving.adapters.grpc_predictions import PredictionServicer
from tidemill_serving.adapters.http_predict import predict_app
from tidemill_serving.adapters.last_good import LastGood
from tidemill_serving.adapters.online_features import OnlineFeatures
from tidemill_serving.adapters.prediction_topic import PredictionTopic
from tidemill_serving.assembly import Rings
from tidemill_serving.deployer import Deployer, Steps
from tidemill_serving.prediction_log import Journal
from tidemill_serving.predictor import Bounds, Predictor
from tidemill_serving.served import Served
from tidemill_serving.settings import ServingSettings


def _now_us() -> int:
    return time.time_ns() // 1000


@asynccontextmanager
async def open_service(settings: ServingSettings, health: Health) -> AsyncIterator[None]:
    """Open everything in order; the last good state serves at once, Kafka is waited for in the background."""
    key = load_public_key(settings.verify_key_file)
    bundles = BundleLoader(open_store(settings.artifacts), key, settings.cache)
    loader = EntryLoader(bundles, Rings(settings.project, settings.feature_group))
    last_good = LastGood(settings.cache, loader)
    producer = Producer(settings.kafka, ack_timeout_s=settings.durable_timeout_s)
    topic = PredictionTopic(producer, queue_records=settings.log_queue, drain_s=settings.drain_s / 2)
    bounds = Bounds(settings.max_batch_rows, settings.micro_batch_rows, settings.max_waiting_rows)
    durable = settings.log == "durable"
    async with redis_client(settings.redis) as redis:
        features = OnlineFeatures(redis, settings.feature_timeout_s)
        steps = Steps(loader.load, features.built, last_good.remember)
        deployer: Deployer[Served] = Deployer(steps, settings.views_wait_s)
        following = Following(settings.kafka, deployer, last_good.recall())
        health.require_ready("deployments", following.fault)
        predictor = Predictor(deployer.entry, features.fetch, topic, Journal(uuid4().hex), _now_us, bounds)
        grpc = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
        grpc.add(
            add_PredictionServiceServicer_to_server, PredictionServicer(predictor, durable_by_default=durable)
        ).add(add_ProgressServiceServicer_to_server, ProgressServicer({"deployments": following.deployments}))
        http = HttpServer(
            settings.http,
            health,
            predict_app(predictor, durable_by_default=durable, deadline_s=settings.grpc.default_deadline_s),
        )
        async with (
            producer,
            running(topic),
            running(deployer),
            running(following),
            running(grpc),
            running(http),
        ):
            yield
