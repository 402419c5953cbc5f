import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeUnit;

import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.KafkaMessageListenerContainer;
import org.springframework.kafka.requestreply.ReplyingKafkaTemplate;
import org.springframework.kafka.support.TopicPartitionOffset;
import org.springframework.kafka.support.serializer.JacksonJsonSerializer;

import tools.jackson.databind.json.JsonMapper;

/**
 * Asks driftline one search as a Spring application would, and prints the reply as it came.
 *
 * AskOnce BOOTSTRAP SEARCH_TOPIC REPLY_TOPIC REPLY_PARTITION REQUEST
 *
 * REPLY_PARTITION is a number, or "any" to read the whole reply topic in a group, as Spring does by default. REQUEST
 * is a JSON object; it is sent as a Map through Spring's JSON serializer.
 */
public class AskOnce {

    private static final Duration PATIENCE = Duration.ofSeconds(30);

    public static void main(String[] args) throws Exception {
        String bootstrap = args[0];
        String replyTopic = args[2];
        ContainerProperties replies = args[3].equals("any")
                ? new ContainerProperties(replyTopic)
                : new ContainerProperties(new TopicPartitionOffset(
                        replyTopic, Integer.parseInt(args[3]), TopicPartitionOffset.SeekPosition.END));
        replies.setGroupId("ask-once-" + UUID.randomUUID());

        Map<String, Object> consumer = new HashMap<>();
        consumer.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        consumer.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "latest");
        var container = new KafkaMessageListenerContainer<>(
                new DefaultKafkaConsumerFactory<>(consumer, new StringDeserializer(), new StringDeserializer()), replies);

        Map<String, Object> producer = Map.of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        var requests = new DefaultKafkaProducerFactory<String, Map<String, Object>>(
                producer, new StringSerializer(), new JacksonJsonSerializer<>());

        var template = new ReplyingKafkaTemplate<String, Map<String, Object>, String>(requests, container);
        template.setSharedReplyTopic(true); // others' replies on the topic are no cause for error messages
        template.afterPropertiesSet();
        template.start();
        try {
            if (!template.waitForAssignment(PATIENCE)) {
                throw new IllegalStateException("no partition of " + replyTopic + " was assigned");
            }
            @SuppressWarnings("unchecked")
            Map<String, Object> request = new JsonMapper().readValue(args[4], Map.class);
            ConsumerRecord<String, String> reply = template
                    .sendAndReceive(new ProducerRecord<>(args[1], request), PATIENCE)
                    .get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
            System.out.write((reply.value() + "\n").getBytes(StandardCharsets.UTF_8));
            System.out.flush();
        } finally {
            template.stop();
            template.destroy();
            requests.destroy();
        }
    }
}
